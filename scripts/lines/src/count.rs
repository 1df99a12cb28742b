//! Follows a crate's modules and counts the lines in each file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::token::{Kind, Token, split};

/// One file's figures.
#[derive(Debug)]
pub(crate) struct File {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Lines that hold code.
    pub(crate) code: usize,
    /// Those of them that lie in `unsafe` blocks.
    pub(crate) in_unsafe: usize,
}

/// Counts the files of the crate in a folder.
pub(crate) fn of_crate(folder: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut found = false;
    for root in ["src/lib.rs", "src/main.rs"] {
        let path = folder.join(root);
        if path.exists() {
            found = true;
            count_file(&path, true, &mut files)?;
        }
    }
    if !found {
        bail!(
            "{} holds no crate: no src/lib.rs, no src/main.rs",
            folder.display()
        );
    }
    Ok(files)
}

/// Counts a file and the modules and assembly files that it names. A `root` has its modules beside it,
/// any other file in a folder of its name.
fn count_file(path: &Path, root: bool, files: &mut Vec<File>) -> Result<()> {
    let source =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let outline = outline(&split(&source));
    let beside = path.parent().unwrap_or(Path::new("."));
    let below = if root {
        beside.to_owned()
    } else {
        path.with_extension("")
    };
    files.push(File {
        path: path.to_owned(),
        code: outline.code.len(),
        in_unsafe: outline.in_unsafe.intersection(&outline.code).count(),
    });
    for module in &outline.modules {
        if let Some(own) = &module.path {
            // A path is relative to the file's folder (The Rust Reference, 6.1, "The path attribute").
            count_file(&beside.join(own), true, files)?;
            continue;
        }
        let folder = module
            .outer
            .iter()
            .fold(below.clone(), |folder, outer| folder.join(outer));
        let plain = folder.join(format!("{}.rs", module.name));
        if plain.exists() {
            count_file(&plain, false, files)?;
        } else {
            count_file(&folder.join(&module.name).join("mod.rs"), true, files)?;
        }
    }
    for name in &outline.assembly {
        let path = beside.join(name);
        let source =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files.push(File {
            path,
            code: assembly_lines(&source),
            in_unsafe: 0,
        });
    }
    Ok(())
}

fn is_assembly(name: &str) -> bool {
    matches!(
        Path::new(name)
            .extension()
            .and_then(|extension| extension.to_str()),
        Some("S" | "s")
    )
}

/// Counts the lines of an assembly file that are neither blank nor comments.
fn assembly_lines(source: &str) -> usize {
    let mut comment = false;
    let mut count = 0;
    for line in source.lines() {
        let mut rest = line.trim();
        let mut code = false;
        while !rest.is_empty() {
            if comment {
                let Some((_, after)) = rest.split_once("*/") else {
                    break;
                };
                comment = false;
                rest = after.trim_start();
            } else if rest.starts_with("//") {
                break;
            } else if let Some(after) = rest.strip_prefix("/*") {
                comment = true;
                rest = after;
            } else {
                code = true;
                let at = rest.find("/*").unwrap_or(rest.len());
                rest = &rest[at..];
            }
        }
        count += usize::from(code);
    }
    count
}

/// A module that lies in a file of its own.
#[derive(Debug, Default, PartialEq, Eq)]
struct Module {
    name: String,
    /// The value of its `path` attribute.
    path: Option<String>,
    /// The modules around it in the same file.
    outer: Vec<String>,
}

/// What one file tells.
#[derive(Debug, Default)]
struct Outline {
    code: BTreeSet<usize>,
    in_unsafe: BTreeSet<usize>,
    modules: Vec<Module>,
    assembly: Vec<String>,
}

/// Reads a file's tokens: which lines are code for the image, and what else belongs to it.
fn outline(tokens: &[Token]) -> Outline {
    let mut outline = Outline::default();
    // What each open brace belongs to.
    let mut open: Vec<Block> = Vec::new();
    let mut own_path = None;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if let Some(attribute) = Attribute::at(tokens, at) {
            if let Some(false) = attribute.condition {
                if attribute.inner {
                    return outline_without_rest(outline, open.is_empty());
                }
                at = end_of_item(tokens, attribute.end);
                continue;
            }
            own_path = attribute.path.or(own_path);
        }
        for line in token.first..=token.last {
            outline.code.insert(line);
            if open.contains(&Block::Unsafe) {
                outline.in_unsafe.insert(line);
            }
        }
        let before = |back: usize| at.checked_sub(back).and_then(|at| tokens.get(at));
        match &token.kind {
            Kind::Mark('{') => {
                let block = block_after(before(1), before(2));
                if block == Block::Unsafe {
                    outline.in_unsafe.insert(token.first);
                }
                open.push(block);
            }
            Kind::Mark('}') => drop(open.pop()),
            Kind::Mark(';') => {
                if let (Some(Kind::Word(name)), Some(true)) = (
                    before(1).map(|token| &token.kind),
                    before(2).map(|token| token.is_word("mod")),
                ) {
                    let outer = open.iter().filter_map(Block::module).cloned().collect();
                    outline.modules.push(Module {
                        name: name.clone(),
                        path: own_path.take(),
                        outer,
                    });
                }
                own_path = None;
            }
            Kind::Text(name)
                if is_assembly(name)
                    && before(3).is_some_and(|token| token.is_word("include_str")) =>
            {
                outline.assembly.push(name.clone());
            }
            _ => {}
        }
        at += 1;
    }
    outline
}

/// What is left of a file that says `#![cfg(…)]` and is not built: nothing.
fn outline_without_rest(outline: Outline, whole_file: bool) -> Outline {
    if whole_file {
        Outline::default()
    } else {
        outline
    }
}

/// What a pair of braces encloses.
#[derive(Debug, PartialEq, Eq)]
enum Block {
    Unsafe,
    Module(String),
    Other,
}

impl Block {
    fn module(&self) -> Option<&String> {
        match self {
            Self::Module(name) => Some(name),
            _ => None,
        }
    }
}

/// Names the block that opens after two tokens.
fn block_after(last: Option<&Token>, one_before: Option<&Token>) -> Block {
    match last.map(|token| &token.kind) {
        Some(Kind::Word(word)) if word == "unsafe" => Block::Unsafe,
        Some(Kind::Word(name)) if one_before.is_some_and(|token| token.is_word("mod")) => {
            Block::Module(name.clone())
        }
        _ => Block::Other,
    }
}

/// An attribute, as far as it matters here.
struct Attribute {
    /// `#![…]`.
    inner: bool,
    /// What its `cfg` comes to.
    condition: Option<bool>,
    /// The value of `path = "…"`.
    path: Option<String>,
    /// The token behind it.
    end: usize,
}

impl Attribute {
    fn at(tokens: &[Token], at: usize) -> Option<Self> {
        let is = |at: usize, mark| {
            tokens
                .get(at)
                .is_some_and(|token: &Token| token.is_mark(mark))
        };
        let inner = is(at + 1, '!');
        let open = at + 1 + usize::from(inner);
        if !is(at, '#') || !is(open, '[') {
            return None;
        }
        let end = end_of_group(tokens, open);
        let body = tokens
            .get(open + 1..end.saturating_sub(1))
            .unwrap_or_default();
        let condition = match body.first() {
            Some(first) if first.is_word("cfg") => Some(
                Condition {
                    tokens: body,
                    at: 2,
                }
                .evaluate(),
            ),
            _ => None,
        };
        let path = match (body.first(), body.get(2).map(|token| &token.kind)) {
            (Some(first), Some(Kind::Text(path))) if first.is_word("path") => Some(path.clone()),
            _ => None,
        };
        Some(Self {
            inner,
            condition,
            path,
            end,
        })
    }
}

/// A condition of a `cfg` that is being read.
struct Condition<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Condition<'_> {
    /// Evaluates the predicate at hand for the image: every feature is on, and nothing is a test.
    fn evaluate(&mut self) -> bool {
        let Some(Kind::Word(name)) = self.tokens.get(self.at).map(|token| &token.kind) else {
            return true;
        };
        self.at += 1;
        if self.take('(') {
            let mut values = Vec::new();
            while self.at < self.tokens.len() && !self.take(')') {
                values.push(self.evaluate());
                self.take(',');
            }
            return match name.as_str() {
                "not" => !values.first().is_some_and(|value| *value),
                "any" => values.contains(&true),
                _ => !values.contains(&false),
            };
        }
        if !self.take('=') {
            return false;
        }
        let value = match self.tokens.get(self.at).map(|token| &token.kind) {
            Some(Kind::Text(value)) => value.as_str(),
            _ => "",
        };
        self.at += 1;
        matches!(
            (name.as_str(), value),
            ("target_os", "none")
                | ("target_arch", "aarch64")
                | ("target_pointer_width", "64")
                | ("target_endian", "little")
                | ("panic", "abort")
                | ("feature", _)
        )
    }

    fn take(&mut self, mark: char) -> bool {
        let there = self
            .tokens
            .get(self.at)
            .is_some_and(|token| token.is_mark(mark));
        self.at += usize::from(there);
        there
    }
}

/// Returns the token behind the bracket that closes the one at `open`.
fn end_of_group(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Mark('(' | '[' | '{') => depth += 1,
            Kind::Mark(')' | ']' | '}') => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// Returns the token behind the item, field, arm or statement that begins at `at`, its other attributes
/// included.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    while let Some(attribute) = Attribute::at(tokens, at) {
        at = attribute.end;
    }
    while let Some(token) = tokens.get(at) {
        match token.kind {
            Kind::Mark(';' | ',') => return at + 1,
            Kind::Mark(')' | ']' | '}') => return at,
            Kind::Mark('(' | '[') => at = end_of_group(tokens, at),
            Kind::Mark('{') => {
                at = end_of_group(tokens, at);
                match tokens.get(at).map(|token| &token.kind) {
                    Some(Kind::Mark(';' | ',')) => return at + 1,
                    Some(Kind::Mark('.' | '?' | ')')) => {}
                    Some(Kind::Word(word)) if word == "else" => {}
                    _ => return at,
                }
            }
            _ => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_and_unsafe(source: &str) -> (usize, usize) {
        let outline = outline(&split(source));
        (
            outline.code.len(),
            outline.in_unsafe.intersection(&outline.code).count(),
        )
    }

    #[test]
    #[rustfmt::skip]
    fn lines_of_code_are_counted() {
        let cases = [
            // source                                                              code, unsafe
            ("//! Doc.\n\n// c\nfn f() {\n    a(); // x\n}\n",                      3, 0),
            ("/* a\n b */ fn f() {}\n",                                             1, 0),
            ("static S: &str = \"a\n  b\n\";\n",                                    3, 0),
            ("fn f() {\n    unsafe {\n        // why\n        a()\n    }\n}\n",      5, 3),
            ("fn f() {\n    let x = unsafe { a() };\n    b(x)\n}\n",                4, 1),
            ("unsafe fn f() {\n    a()\n}\nunsafe impl A for B {}\n",               4, 0),
            ("#[cfg(test)]\nmod tests {\n    fn f() {}\n}\nfn g() {}\n",            1, 0),
            ("#[cfg(not(target_os = \"none\"))]\nfn f() -> [u8; 2] {\n}\nfn g() {}", 1, 0),
            ("#[cfg(target_os = \"none\")]\nfn f() {}\n",                           2, 0),
            ("#[cfg(any(test, feature = \"vpci\"))]\nuse a::{b, c};\n",             2, 0),
            ("#[cfg(test)]\nuse a::{\n  b,\n  c,\n};\nfn g() {}\n",                 1, 0),
            ("#[cfg(all(test, not(loom)))]\n#[path = \"x.rs\"]\nmod t;\nfn g() {}", 1, 0),
            ("struct S {\n    #[cfg(test)]\n    a: u8,\n    b: u8,\n}\n",           3, 0),
            ("struct S {\n    b: u8,\n    #[cfg(test)]\n    a: u8\n}\n",            3, 0),
            ("#![cfg(not(target_os = \"none\"))]\nfn f() {}\n",                     0, 0),
            ("#[cfg(test)]\nconst A: S = S {\n  a: 1,\n};\nfn g() {}\n",            1, 0),
        ];
        for (source, code, in_unsafe) in cases {
            assert_eq!(code_and_unsafe(source), (code, in_unsafe), "{source}");
        }
    }

    #[test]
    fn modules_and_assembly_files_are_followed() {
        let source = "mod a;\npub mod b {\n    mod c;\n}\n#[path = \"x/d.rs\"]\nmod d;\n#[cfg(test)]\nmod e;\n\
                      global_asm!(include_str!(\"head.S\"));\n";
        let outline = outline(&split(source));
        let module = |name: &str, path: Option<&str>, outer: &[&str]| Module {
            name: name.to_owned(),
            path: path.map(str::to_owned),
            outer: outer.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(
            outline.modules,
            [
                module("a", None, &[]),
                module("c", None, &["b"]),
                module("d", Some("x/d.rs"), &[])
            ]
        );
        assert_eq!(outline.assembly, ["head.S"]);
    }

    #[test]
    fn comments_of_assembly_do_not_count() {
        let source = "// head\n\n_start: b 1f // go\n/* a\n b */ nop\n/* c */\n1: /* d */ ret\n";
        assert_eq!(assembly_lines(source), 3);
    }
}
