//! Splits Rust's source into tokens, as far as counting needs it: comments are dropped, and no literal is
//! taken for code.

/// What a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An identifier, a keyword or a number.
    Word(String),
    /// One character of punctuation.
    Mark(char),
    /// A string of any sort, with what stands between its quotes.
    Text(String),
    /// A character, a byte or a lifetime.
    Quoted,
}

/// A token and the lines it reaches over, counted from zero.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    /// What it is.
    pub(crate) kind: Kind,
    /// The line it begins on.
    pub(crate) first: usize,
    /// The line it ends on.
    pub(crate) last: usize,
}

impl Token {
    /// Tells whether the token is this word.
    pub(crate) fn is_word(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Word(own) if own == word)
    }

    /// Tells whether the token is this mark.
    pub(crate) fn is_mark(&self, mark: char) -> bool {
        self.kind == Kind::Mark(mark)
    }
}

/// Where the reader stands.
struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Reader<'a> {
    /// Takes `length` bytes.
    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    /// Takes all up to and with `end`, or the rest if it does not come.
    fn take_through(&mut self, end: &str) -> &'a str {
        let length = self
            .rest
            .find(end)
            .map_or(self.rest.len(), |at| at + end.len());
        self.take(length)
    }

    /// Drops a block comment; these nest.
    fn drop_comment(&mut self) {
        let mut depth = 0;
        while !self.rest.is_empty() {
            if self.rest.starts_with("/*") {
                depth += 1;
                self.take(2);
            } else if self.rest.starts_with("*/") {
                depth -= 1;
                self.take(2);
                if depth == 0 {
                    return;
                }
            } else {
                self.take_character();
            }
        }
    }

    fn take_character(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.take(next.len_utf8());
        Some(next)
    }

    /// Takes a string after its opening quote, and returns what it holds, escapes and all.
    fn take_string(&mut self) -> &'a str {
        let begin = self.rest;
        while let Some(next) = self.take_character() {
            match next {
                '\\' => drop(self.take_character()),
                '"' => return &begin[..begin.len() - self.rest.len() - 1],
                _ => {}
            }
        }
        begin
    }

    /// Takes a raw string from its hashes on.
    fn take_raw_string(&mut self) -> &'a str {
        let hashes = self.rest.len() - self.rest.trim_start_matches('#').len();
        self.take(hashes + 1);
        let end = format!("\"{}", "#".repeat(hashes));
        let taken = self.take_through(&end);
        taken.strip_suffix(&end).unwrap_or(taken)
    }

    /// Takes a character or a lifetime from its quote on.
    fn take_quoted(&mut self) {
        self.take(1);
        let mut after = self.rest.chars();
        match (after.next(), after.next()) {
            (Some('\\'), _) => {
                self.take(1);
                self.take_character();
                self.take_through("'");
            }
            (Some(_), Some('\'')) => {
                self.take_character();
                self.take(1);
            }
            _ => {
                self.take(word_length(self.rest));
            }
        }
    }
}

/// Returns how many bytes of `text` are one word.
fn word_length(text: &str) -> usize {
    text.find(|next: char| !next.is_alphanumeric() && next != '_')
        .unwrap_or(text.len())
}

/// Tells whether a word in front of a quote makes it a string's prefix, and whether a raw one's.
fn prefix(word: &str, rest: &str) -> Option<bool> {
    let raw = matches!(word, "r" | "br" | "cr") && rest.trim_start_matches('#').starts_with('"');
    let plain = matches!(word, "b" | "c") && rest.starts_with('"');
    (raw || plain).then_some(raw)
}

/// Splits a source into its tokens.
pub(crate) fn split(source: &str) -> Vec<Token> {
    let mut reader = Reader {
        rest: source,
        line: 0,
    };
    let mut tokens = Vec::new();
    while let Some(next) = reader.rest.chars().next() {
        let first = reader.line;
        let kind = if next.is_whitespace() {
            reader.take_character();
            continue;
        } else if reader.rest.starts_with("//") {
            reader.take_through("\n");
            continue;
        } else if reader.rest.starts_with("/*") {
            reader.drop_comment();
            continue;
        } else if next == '"' {
            reader.take(1);
            Kind::Text(reader.take_string().to_owned())
        } else if next == '\'' {
            reader.take_quoted();
            Kind::Quoted
        } else if next.is_alphanumeric() || next == '_' {
            let word = reader.take(word_length(reader.rest));
            match prefix(word, reader.rest) {
                Some(true) => Kind::Text(reader.take_raw_string().to_owned()),
                Some(false) => {
                    reader.take(1);
                    Kind::Text(reader.take_string().to_owned())
                }
                None => Kind::Word(word.to_owned()),
            }
        } else {
            reader.take_character();
            Kind::Mark(next)
        };
        tokens.push(Token {
            kind,
            first,
            last: reader.line,
        });
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        split(source)
            .into_iter()
            .map(|token| match token.kind {
                Kind::Word(word) => word,
                Kind::Mark(mark) => mark.to_string(),
                Kind::Text(text) => format!("\"{text}\""),
                Kind::Quoted => "'".to_owned(),
            })
            .collect()
    }

    #[test]
    #[rustfmt::skip]
    fn literals_and_comments_are_told_from_code() {
        let cases: &[(&str, &[&str])] = &[
            ("a // b\nc",                  &["a", "c"]),
            ("a /* b /* c */ d */ e",      &["a", "e"]),
            (r#"x("//", 1)"#,              &["x", "(", "\"//\"", ",", "1", ")"]),
            (r#""a\"b" c"#,                &[r#""a\"b""#, "c"]),
            (r###"r#"a"b"# c"###,          &["\"a\"b\"", "c"]),
            (r#"b"a" br"b\" c"c""#,        &["\"a\"", "\"b\\\"", "\"c\""]),
            ("'{' '\\'' '\\u{7f}' b'\"' x", &["'", "'", "'", "b", "'", "x"]),
            ("fn f<'a>(x: &'a str)",       &["fn", "f", "<", "'", ">", "(", "x", ":", "&", "'", "str", ")"]),
        ];
        for (source, expected) in cases {
            assert_eq!(words(source), *expected, "{source}");
        }
    }

    #[test]
    fn a_string_over_several_lines_knows_both_ends() {
        let tokens = split("a\n\"b\nc\nd\" e");
        let lines: Vec<_> = tokens
            .iter()
            .map(|token| (token.first, token.last))
            .collect();
        assert_eq!(lines, [(0, 0), (1, 3), (3, 3)]);
    }
}
