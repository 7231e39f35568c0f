//! Which tables belong to a dump, or are loaded from one.

use super::names::Pattern;

/// Which tables belong to a dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only these schemas. Not together with `tables`.
    pub schemas: Vec<Pattern>,
    /// Only these tables.
    pub tables: Vec<Pattern>,
    /// Not these schemas.
    pub exclude_schemas: Vec<Pattern>,
    /// Not these tables.
    pub exclude_tables: Vec<Pattern>,
    /// Of these tables only the definition.
    pub exclude_rows: Vec<Pattern>,
}

impl Selection {
    /// Whether something is left out unless it is named.
    pub fn is_partial(&self) -> bool {
        !self.schemas.is_empty() || !self.tables.is_empty()
    }

    pub(super) fn takes(&self, schema: &str, table: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(schema, table));
        let named = !self.is_partial() || any(&self.schemas) || any(&self.tables);
        named && !any(&self.exclude_schemas) && !any(&self.exclude_tables)
    }

    pub(super) fn takes_rows(&self, schema: &str, table: &str) -> bool {
        !self.exclude_rows.iter().any(|pattern| pattern.matches(schema, table))
    }

    pub(super) fn arguments(&self) -> Vec<String> {
        let lists = [
            ("--schema", &self.schemas),
            ("--table", &self.tables),
            ("--exclude-schema", &self.exclude_schemas),
            ("--exclude-table", &self.exclude_tables),
            ("--exclude-table-data", &self.exclude_rows),
        ];
        let all = lists.into_iter().flat_map(|(name, patterns)| patterns.iter().map(move |p| (name, p)));
        all.map(|(name, pattern)| format!("{name}={}", pattern.for_pg_dump())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_excluded_is_never_taken() {
        let pattern = |text: &str| vec![Pattern::table(text).unwrap()];
        let selection = Selection {
            tables: pattern("app.*"),
            exclude_tables: pattern("app.log_*"),
            exclude_rows: pattern("*.cache"),
            ..Selection::default()
        };
        assert!(selection.takes("app", "users") && selection.takes("app", "cache"));
        assert!(!selection.takes("app", "log_1") && !selection.takes("public", "users"));
        assert!(selection.takes_rows("app", "users") && !selection.takes_rows("app", "cache"));
        assert_eq!(
            selection.arguments(),
            [r#"--table="app".*"#, r#"--exclude-table="app"."log_"*"#, r#"--exclude-table-data=*."cache""#]
        );
    }
}
