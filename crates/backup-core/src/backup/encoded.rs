//! Entries in the form in which they go into the map and the recipes.

use std::io::Write;

use keepwell_catalog::{
    CatalogError, Entry, Extent, MapBuilder, MapError, MapKey, NodeSink, RecipeRef, RecipeWriter, SubRecord,
    for_each_record, record_extents,
};

/// An encoded entry with its sub-key records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub value: Vec<u8>,
    pub more: Vec<SubRecord>,
}

impl Encoded {
    /// Encodes a whole entry.
    pub fn new(key: &MapKey, entry: &Entry) -> Result<Self, MapError> {
        let mut value = None;
        let mut more = Vec::new();
        for_each_record(key, entry, |raw, bytes| {
            match value {
                None => value = Some(bytes.to_vec()),
                Some(_) => more.push(SubRecord { key: raw.to_vec(), value: bytes.to_vec() }),
            }
            Ok::<(), MapError>(())
        })?;
        Ok(Self { value: value.unwrap_or_default(), more })
    }

    /// Takes over what a recipe holds.
    pub fn of_recipe(recipe: &RecipeRef<'_>) -> Self {
        Self { value: recipe.value.to_vec(), more: recipe.extra.to_vec() }
    }

    /// Every extent, front to back.
    pub fn extents(&self, key: &MapKey) -> Result<Vec<Extent>, MapError> {
        let mut extents = record_extents(key.as_bytes(), &self.value)?;
        for record in &self.more {
            extents.extend(record_extents(&record.key, &record.value)?);
        }
        Ok(extents)
    }

    /// Appends the records to a map.
    pub fn push(
        &self,
        key: &MapKey,
        builder: &mut MapBuilder,
        sink: &mut dyn NodeSink,
    ) -> Result<(), MapError> {
        builder.push(key.as_bytes(), &self.value, sink)?;
        self.more.iter().try_for_each(|record| builder.push(&record.key, &record.value, sink))
    }

    /// Appends the records to recipes.
    pub fn remember<W: Write>(
        &self,
        key: &MapKey,
        fingerprint: &[u8; 16],
        recipes: &mut RecipeWriter<W>,
    ) -> Result<(), CatalogError> {
        recipes.push(key.as_bytes(), fingerprint, &self.value)?;
        self.more.iter().try_for_each(|record| recipes.push_sub_record(&record.key, &record.value))
    }
}
