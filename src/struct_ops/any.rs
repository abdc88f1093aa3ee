//! Tables and links of whatever type: for those who keep many.
//!
//! Key types: [`AnyTable`], [`AnyLink`].

use std::sync::Arc;

use super::error::OpsError;
use super::link::LinkCore;
use super::table::TableCore;

/// A [`Table`](super::Table) without its type.
#[derive(Clone, Debug)]
pub struct AnyTable(pub(super) Arc<TableCore>);

/// A [`Link`](super::Link) without its type. It keeps the link registered.
#[derive(Clone, Debug)]
pub struct AnyLink(pub(super) Arc<LinkCore>);

impl AnyTable {
    /// What the type is called.
    pub fn type_name(&self) -> &'static str {
        self.0.ty.name
    }
}

impl AnyLink {
    /// What the type is called.
    pub fn type_name(&self) -> &'static str {
        self.0.ty.name
    }

    /// As [`Link::update`](super::Link::update).
    ///
    /// # Errors
    /// [`OpsError::OtherType`]; else as there.
    pub fn update(&self, table: &AnyTable) -> Result<(), OpsError> {
        self.0.update(&table.0)
    }
}
