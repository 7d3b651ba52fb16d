//! How many allocations a request makes, from its bytes to those of its answer: what it costs, held without timing
//! anything. What SQLite does on threads of its own is not counted; PostgreSQL is left out, whose driver allocates by how
//! its answers happen to arrive.

mod requests;

use allocation_counter::measure;
use requests::{Furnished, OPERATIONS};

/// How many allocations each takes, give or take a tenth. Fewer is a reason to lower the number.
const EXPECTED: [u64; OPERATIONS.len()] = [84, 107, 345, 2097, 267];

#[test]
fn a_request_makes_as_many_allocations_as_it_did() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut furnished = Furnished::new(directory.path());
    let mut wrong = Vec::new();
    for ((title, query), expected) in OPERATIONS.into_iter().zip(EXPECTED) {
        let counts = (0..10).map(|_| {
            let request = furnished.request(query);
            measure(|| drop(furnished.send(request))).count_total
        });
        // The first ones fill what is kept.
        let least = counts.min().unwrap_or_default();
        println!("{title}: {least}");
        if least.abs_diff(expected) * 10 > expected {
            wrong.push(format!("{title}: {least} instead of {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
