//! Storage quotas of accounts, projects and tasks. The usage counters are in
//! [`crate::store::quota`].

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageQuotas {
    /// Projects per account.
    pub projects: i64,
    /// Tasks per project.
    pub tasks: i64,
    /// Comments per task.
    pub comments: i64,
    /// Bytes of text in all projects of an account: descriptions, comments, and former texts kept
    /// in the history.
    pub text_bytes: i64,
}

impl Default for StorageQuotas {
    fn default() -> Self {
        Self {
            projects: 1_000,
            tasks: 50_000,
            comments: 5_000,
            text_bytes: 4096 * MIB,
        }
    }
}

pub const MIB: i64 = 1024 * 1024;
