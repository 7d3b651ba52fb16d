//! What an operator does beside the running server: copies, moves and questions. Errors here are for whoever sits at the
//! shell, and are [`Error::Internal`](crate::error::Error::Internal) with their text.

pub mod backup;
pub mod doctor;
pub mod relocate;
pub mod report;
pub mod settings;
