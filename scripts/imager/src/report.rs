//! Mistakes in a file, and how they are shown.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A text file, to find lines and columns in.
#[derive(Debug)]
pub(crate) struct TextFile {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// What is wrong with a file, one line for each mistake.
#[derive(Debug)]
pub struct Report(Vec<String>);

impl TextFile {
    pub(crate) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Returns one mistake's line: file, line, column, and what is wrong.
    pub(crate) fn line(&self, place: &Range<usize>, what: impl fmt::Display) -> String {
        let before = self.text.get(..place.start).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        format!("{}:{line}:{column}: {what}", self.path.display())
    }

    pub(crate) fn refuse(&self, place: &Range<usize>, what: impl fmt::Display) -> Report {
        Report(vec![self.line(place, what)])
    }
}

impl Report {
    /// Returns a report of these lines, unless there are none.
    pub(crate) fn of(lines: Vec<String>) -> Result<(), Self> {
        if lines.is_empty() {
            Ok(())
        } else {
            Err(Self(lines))
        }
    }

    /// Returns a report about something that has no place in a file.
    pub(crate) fn about(path: &Path, what: impl fmt::Display) -> Self {
        Self(vec![format!("{}: {what}", path.display())])
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Report {}
