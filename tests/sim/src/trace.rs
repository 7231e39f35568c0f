//! What happened, as text for people and as a hash to compare runs by.

/// A line for everything that happens in a world. Two runs of one seed give the same hash.
#[derive(Debug, Default)]
pub struct Trace {
    hasher: blake3::Hasher,
    lines: u64,
    kept: Option<Vec<String>>,
    printed: bool,
}

impl Trace {
    /// Only the hash.
    pub fn hash_only() -> Self {
        Self::default()
    }

    /// The hash, and the last lines.
    pub fn kept() -> Self {
        Self { kept: Some(Vec::new()), ..Self::default() }
    }

    /// The hash, and every line on standard output.
    pub fn printed() -> Self {
        Self { printed: true, ..Self::default() }
    }

    pub(crate) fn line(&mut self, line: &str) {
        self.lines += 1;
        self.hasher.update(line.as_bytes());
        self.hasher.update(b"\n");
        if self.printed {
            println!("{:5} {line}", self.lines);
        }
        if let Some(kept) = &mut self.kept {
            kept.push(line.to_owned());
        }
    }

    /// Lines so far.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Hash of everything so far.
    pub fn hash(&self) -> String {
        self.hasher.finalize().to_hex()[..16].to_owned()
    }

    /// All lines, if they were kept.
    pub fn text(&self) -> &[String] {
        self.kept.as_deref().unwrap_or_default()
    }
}
