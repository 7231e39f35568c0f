//! Files of questions: what `pg verify` asks a recovered server, and `pg backup` the live one.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use keepwell_source_postgres::recovery::{Expect, Question};
use serde::Deserialize;

use crate::exit::Complaint;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuestionFile {
    question: Vec<Asked>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Asked {
    name: String,
    database: String,
    sql: String,
    equals: Option<String>,
    at_least: Option<i64>,
    at_most: Option<i64>,
    at_least_recorded: Option<u32>,
}

/// Reads a file of questions.
pub fn read(file: &Path) -> Result<Vec<Question>> {
    let text = fs::read_to_string(file).with_context(|| format!("read `{}`", file.display()))?;
    parse_questions(&text).map_err(|why| Complaint::usage(format!("`{}`: {why}", file.display())).into())
}

fn parse_questions(text: &str) -> Result<Vec<Question>, String> {
    let file: QuestionFile = toml::from_str(text).map_err(|error| error.to_string())?;
    let understood = file.question.into_iter().map(|asked| {
        let expect = match (asked.equals, asked.at_least, asked.at_most, asked.at_least_recorded) {
            (Some(text), None, None, None) => Expect::Equal(text),
            (None, least, most, None) if least.or(most).is_some() => Expect::Between(least, most),
            (None, None, None, Some(percent)) => Expect::Recorded(percent),
            _ => {
                let keys = "`equals`, or `at-least` or `at-most`, or `at-least-recorded`";
                return Err(format!("`{}` needs {keys}", asked.name));
            }
        };
        Ok(Question { name: asked.name, database: asked.database, sql: asked.sql, expect })
    });
    understood.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_says_what_it_expects_once() {
        let one = "[[question]]\nname = 'n'\ndatabase = 'd'\nsql = 'SELECT 1'\n";
        let read = |more: &str| parse_questions(&format!("{one}{more}"));
        assert_eq!(read("equals = '1'").unwrap()[0].expect, Expect::Equal("1".into()));
        assert_eq!(read("at-least = 1\nat-most = 2").unwrap()[0].expect, Expect::Between(Some(1), Some(2)));
        assert_eq!(read("at-least-recorded = 95").unwrap()[0].expect, Expect::Recorded(95));
        for wrong in [
            "",
            "equals = '1'\nat-least = 1",
            "atleast = 1",
            "at-most = 1\nat-least-recorded = 95",
            "at-least-recorded = -1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
