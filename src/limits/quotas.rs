//! How much accounts and projects may hold. The counters are [`crate::store::quota`]'s.

/// How much an account, a project and a task may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageQuotas {
    /// Projects of one account.
    pub projects: i64,
    /// Tasks of one project.
    pub tasks: i64,
    /// Comments on one task.
    pub comments: i64,
    /// Bytes of descriptions and comments in all projects of one account, with the former texts that history keeps.
    pub text_bytes: i64,
}

impl Default for StorageQuotas {
    fn default() -> Self {
        Self { projects: 1_000, tasks: 50_000, comments: 5_000, text_bytes: 4096 * MIB }
    }
}

/// Bytes of a mebibyte.
pub const MIB: i64 = 1024 * 1024;
