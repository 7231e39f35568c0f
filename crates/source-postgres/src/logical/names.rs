//! Names: quoted for SQL, as parts of keys, and as patterns.

/// An identifier for SQL.
pub(crate) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name with its schema, for SQL.
pub(crate) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A text for SQL, whatever `standard_conforming_strings` says.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    match quoted.contains('\\') {
        true => format!(" E'{}'", quoted.replace('\\', "\\\\")),
        false => format!("'{quoted}'"),
    }
}

/// A name as a component of a key that is a file name everywhere: `/`, `%` and dots at the front become `%xx`.
pub(crate) fn component(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (at, character) in name.char_indices() {
        match character {
            '/' | '%' => text.push_str(&format!("%{:02x}", character as u32)),
            '.' if at == 0 => text.push_str("%2e"),
            _ => text.push(character),
        }
    }
    text
}

/// A schema or a table in one, with `*` for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    schema: String,
    table: Option<String>,
}

impl Pattern {
    /// Of a schema. `None` for an empty one.
    pub fn schema(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self { schema: text.to_owned(), table: None })
    }

    /// Of a table, as in `public.log_*`. `None` for what is not SCHEMA.TABLE.
    pub fn table(text: &str) -> Option<Self> {
        let (schema, table) = text.split_once('.')?;
        let fits = !schema.is_empty() && !table.is_empty() && !table.contains('.');
        fits.then(|| Self { schema: schema.to_owned(), table: Some(table.to_owned()) })
    }

    /// Whether it means this table.
    pub fn matches(&self, schema: &str, table: &str) -> bool {
        glob(self.schema.as_bytes(), schema.as_bytes())
            && self.table.as_ref().is_none_or(|pattern| glob(pattern.as_bytes(), table.as_bytes()))
    }

    /// The same for `pg_dump`, which takes everything between quotes as it is.
    pub(crate) fn for_pg_dump(&self) -> String {
        match &self.table {
            Some(table) => format!("{}.{}", quoted_glob(&self.schema), quoted_glob(table)),
            None => quoted_glob(&self.schema),
        }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.table {
            Some(table) => write!(f, "{}.{table}", self.schema),
            None => f.write_str(&self.schema),
        }
    }
}

fn quoted_glob(pattern: &str) -> String {
    let quoted = |part: &str| if part.is_empty() { String::new() } else { ident(part) };
    pattern.split('*').map(quoted).collect::<Vec<_>>().join("*")
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < text.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, from));
            at += 1;
        } else if pattern.get(at) == Some(&text[from]) {
            (at, from) = (at + 1, from + 1);
        } else if let Some((star_at, matched)) = star {
            (at, from) = (star_at + 1, matched + 1);
            star = Some((star_at, matched + 1));
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_whatever_they_hold() {
        assert_eq!(qualified("a\"b", "c d"), "\"a\"\"b\".\"c d\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'b"), " E'a\\\\''b'");
    }

    #[test]
    fn components_never_leave_their_directory() {
        for (name, expected) in
            [("plain", "plain"), ("..", "%2e."), ("a/b", "a%2fb"), ("50%", "50%25"), ("a.b", "a.b")]
        {
            assert_eq!(component(name), expected);
        }
    }

    #[test]
    fn patterns_match_as_pg_dump_reads_them() {
        let table = |text: &str| Pattern::table(text).unwrap();
        assert!(table("public.log_*").matches("public", "log_2020") && table("*.a*c").matches("x", "abac"));
        assert!(!table("public.log_*").matches("public", "alog_") && !table("p.a").matches("p", "A"));
        assert_eq!(table("My.log_*").for_pg_dump(), "\"My\".\"log_\"*");
        assert!(Pattern::schema("audit*").unwrap().matches("audit_1", "t"));
        for wrong in ["t", ".t", "s.", "a.b.c", ""] {
            assert_eq!(Pattern::table(wrong), None, "{wrong}");
        }
    }
}
