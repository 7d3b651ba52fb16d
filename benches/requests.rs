//! Benchmark of the hot paths, from the bytes of a request to those of its response, on SQLite and
//! in one thread. For comparing versions of the code.
//!
//! ```sh
//! cargo bench --bench requests                                 # compares with the last run
//! cargo bench --bench requests -- --save-baseline before       # and later: -- --baseline before
//! ```

#[path = "../tests/requests/mod.rs"]
mod requests;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use requests::{Fixture, OPERATIONS};

fn requests(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let furnished = std::cell::RefCell::new(Fixture::new(directory.path()));
    for (title, query) in OPERATIONS {
        criterion.bench_function(title, |bencher| {
            bencher.iter_batched(
                || furnished.borrow_mut().request(query),
                |request| furnished.borrow_mut().send(request),
                BatchSize::SmallInput,
            );
        });
    }
}

criterion_group!(benches, requests);
criterion_main!(benches);
