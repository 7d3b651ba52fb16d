//! Substring search in text written by users, with a linear algorithm over a bounded amount of
//! text.
//!
//! `LIKE '%…%'`, `instr` and `strpos` restart the comparison at each character, which is quadratic
//! for a text that repeats one letter. A search therefore has two steps. First, the list's other
//! filters select the candidates, as ids and lengths in list order. Then the texts are read in
//! chunks and matched in Rust until the page is full; the page is selected by the ids that matched.
//!
//! The text read is limited per search ([`MAX_SEARCH_BYTES`]) and per operation, which is charged
//! for it in advance (see `admission`).

use std::collections::{HashMap, HashSet};

use diesel::sql_types::Text;
use memchr::memmem::Finder;

use super::value::Search;
use crate::db::OperationScope;
use crate::error::{Code, Error, Result};
use crate::id::Id;

/// Bytes of text that one search may read.
pub const MAX_SEARCH_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes charged for a row at least, since short rows have a cost too.
const ROW_BYTES: u64 = 256;
/// Rows that one search may examine.
pub const MAX_CANDIDATES: usize = (MAX_SEARCH_BYTES / ROW_BYTES) as usize;
/// Bytes of text in memory at once; the last text may exceed it.
const CHUNK_BYTES: u64 = 1024 * 1024;
/// Texts read per statement.
const CHUNK_ROWS: usize = 500;

diesel::define_sql_function! {
    /// Length of a text in bytes. Neither database reads the text itself for it.
    fn octet_length(text: Text) -> Integer;
}

/// A row that may match.
#[derive(Clone, Copy, Debug, diesel::Queryable)]
pub struct Candidate {
    /// The parent whose list the row is in; `None` in a top-level list.
    pub parent: Option<Id>,
    pub id: Id,
    /// Length of the row's text.
    pub bytes: i32,
}

/// A search in progress.
pub struct TextScan<'a> {
    words: Vec<Finder<'a>>,
    candidates: std::vec::IntoIter<Candidate>,
    /// There are more candidates than [`MAX_CANDIDATES`].
    is_cut: bool,
    /// Maximum of matches per parent.
    limit: usize,
    parents: usize,
    /// Bytes that may still be read.
    left: u64,
    chunk: Vec<Candidate>,
    found: HashMap<Option<Id>, Vec<Id>>,
}

impl<'a> TextScan<'a> {
    /// Prepares a search of candidates, which must be in list order, for at most `limit` matches
    /// per parent.
    pub fn new(
        search: &'a Search,
        mut candidates: Vec<Candidate>,
        parents: usize,
        limit: usize,
    ) -> Self {
        let is_cut = candidates.len() > MAX_CANDIDATES;
        candidates.truncate(MAX_CANDIDATES);
        Self {
            words: search.words().iter().map(Finder::new).collect(),
            candidates: candidates.into_iter(),
            is_cut,
            limit,
            parents,
            left: MAX_SEARCH_BYTES,
            chunk: Vec::new(),
            found: HashMap::new(),
        }
    }

    /// Returns the ids of the rows whose texts to match next, or `None` when the search is
    /// complete. Fails if the search exceeds a limit.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<Id>>> {
        let mut bytes = 0;
        self.chunk.clear();
        while self.chunk.len() < CHUNK_ROWS
            && bytes < CHUNK_BYTES
            && !self.is_full()
            && let Some(candidate) = self.candidates.next()
        {
            if self
                .found
                .get(&candidate.parent)
                .is_none_or(|found| found.len() < self.limit)
            {
                bytes += u64::try_from(candidate.bytes)
                    .unwrap_or_default()
                    .max(ROW_BYTES);
                self.chunk.push(candidate);
            }
        }
        if self.chunk.is_empty() {
            return if self.is_cut && !self.is_full() {
                Err(search_too_large())
            } else {
                Ok(None)
            };
        }
        self.left = self.left.checked_sub(bytes).ok_or_else(search_too_large)?;
        if !OperationScope::draw_search_bytes(bytes) {
            return Err(search_too_large());
        }
        Ok(Some(
            self.chunk.iter().map(|candidate| candidate.id).collect(),
        ))
    }

    /// Matches the texts of the current chunk, in any order.
    pub fn check(&mut self, texts: Vec<(Id, String)>) {
        let matches = |text: &String| {
            self.words
                .iter()
                .all(|word| word.find(text.as_bytes()).is_some())
        };
        let matched: HashSet<Id> = texts
            .into_iter()
            .filter(|(_, text)| matches(text))
            .map(|(id, _)| id)
            .collect();
        for candidate in self
            .chunk
            .drain(..)
            .filter(|candidate| matched.contains(&candidate.id))
        {
            let found = self.found.entry(candidate.parent).or_default();
            if found.len() < self.limit {
                found.push(candidate.id);
            }
        }
    }

    /// Returns the matching ids by parent, in list order.
    pub fn found(self) -> HashMap<Option<Id>, Vec<Id>> {
        self.found
    }

    fn is_full(&self) -> bool {
        self.found.len() == self.parents
            && self.found.values().all(|found| found.len() >= self.limit)
    }
}

/// Merges the matches of all parents into one list of ids.
pub fn flatten(found: Option<HashMap<Option<Id>, Vec<Id>>>) -> Option<Vec<Id>> {
    found.map(|found| found.into_values().flatten().collect())
}

fn search_too_large() -> Error {
    let message = "This search would scan too much text. Add other filters or request fewer items.";
    Error::refused(Code::DocumentTooComplex, message)
}

/// Runs a [`TextScan`] over the `search` column of a table.
macro_rules! scan {
    ($conn:ident, $table:ident, $scan:expr) => {{
        let mut scan = $scan;
        while let Some(ids) = scan.next_chunk()? {
            let texts = $table::table.filter($crate::db::page::any_id($table::id, &ids));
            scan.check($crate::on!($conn, |c| texts
                .select(($table::id, $table::search))
                .load(c)
                .await)?);
        }
        scan.found()
    }};
}
pub(super) use scan;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(texts: &[(Option<Id>, String)]) -> (Vec<Candidate>, HashMap<Id, String>) {
        let rows = texts.iter().map(|(parent, text)| {
            let candidate = Candidate {
                parent: *parent,
                id: Id::new(),
                bytes: text.len() as i32,
            };
            (candidate, (candidate.id, text.clone()))
        });
        rows.unzip()
    }

    fn run(
        mut scan: TextScan<'_>,
        texts: &HashMap<Id, String>,
    ) -> Result<HashMap<Option<Id>, Vec<Id>>> {
        while let Some(ids) = scan.next_chunk()? {
            scan.check(
                ids.into_iter()
                    .rev()
                    .map(|id| (id, texts[&id].clone()))
                    .collect(),
            );
        }
        Ok(scan.found())
    }

    proptest! {
        #[test]
        fn a_scan_finds_what_a_plain_search_finds(
            texts in prop::collection::vec((0..3_usize, "[ab ]{0,6}"), 0..40),
            query in "[ab ]{0,4}",
            limit in 1..5_usize,
        ) {
            let parents = [Id::new(), Id::new(), Id::new()];
            let texts: Vec<_> = texts.into_iter().map(|(parent, text)| (Some(parents[parent]), text)).collect();
            let (candidates, by_id) = candidates(&texts);
            let search = Search::parse(&query).unwrap();
            let found = run(TextScan::new(&search, candidates.clone(), 3, limit), &by_id).unwrap();
            for parent in parents {
                let expected: Vec<Id> = candidates
                    .iter()
                    .filter(|it| it.parent == Some(parent))
                    .filter(|it| query.split_whitespace().all(|word| by_id[&it.id].contains(word)))
                    .map(|it| it.id)
                    .take(limit)
                    .collect();
                prop_assert_eq!(found.get(&Some(parent)).cloned().unwrap_or_default(), expected);
            }
        }
    }

    #[test]
    fn a_scan_reads_no_more_than_it_may() {
        let search = Search::parse("b").unwrap();
        let text = |bytes: usize| (None, "a".repeat(bytes));
        let (long, by_id) = candidates(&vec![text(40_000); 500]);
        assert!(
            run(TextScan::new(&search, long.clone(), 1, 1), &by_id).is_err(),
            "20 MB"
        );
        assert!(
            run(TextScan::new(&search, long[..400].to_vec(), 1, 1), &by_id).is_ok(),
            "16 MB"
        );
        let (short, by_id) = candidates(&vec![text(0); MAX_CANDIDATES + 1]);
        assert!(
            run(TextScan::new(&search, short.clone(), 1, 1), &by_id).is_err(),
            "too many rows"
        );
        assert!(run(TextScan::new(&search, short[1..].to_vec(), 1, 1), &by_id).is_ok());
        let everything = Search::parse("").unwrap();
        let found = run(TextScan::new(&everything, short, 1, 20), &by_id).unwrap();
        assert_eq!(
            found[&None].len(),
            20,
            "a page that is full early has read little"
        );
    }
}
