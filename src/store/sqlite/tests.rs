//! The store's contract against the SQLite file.
