//! Runs every target with the corpus, and then with random changes of it. No coverage guides the
//! changes: coverage-guided fuzzers need a nightly toolchain or programs of their own, and the gate
//! runs on stable Rust with nothing installed.
//!
//! `SHUNT_FUZZ_SECONDS` is the time for each target, `SHUNT_FUZZ_SEED` the seed. An input that
//! breaks a property is printed in the form that `SHUNT_FUZZ_INPUT` takes; it belongs into the
//! corpus.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// An allocator that counts the bytes that are allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(
            NOW.fetch_add(layout.size(), Relaxed) + layout.size(),
            Relaxed,
        );
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that may be allocated at one time for one input, in bytes: a few frames, and all
/// bitmaps of the largest volume.
const MEMORY_MAX: usize = 16 << 20;
const INPUT_BYTES_MAX: usize = 4096;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }
}

/// Bytes that often break decoders.
const TOKENS: &[&[u8]] = &[
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\x7f",
    b"18446744073709551615",
    b"-1",
    b"1e999",
    b"null",
    b"[[[[",
    b"{\"",
    b"\\u0000",
    b"\\ud800",
    b"\"",
    b",",
    b"}",
    b"\x80",
    b"SHNTROLE",
    b"source",
    b"target",
];

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(7) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.below(256) as u8,
            2 => input.truncate(at),
            3 => {
                let token = TOKENS[random.below(TOKENS.len())];
                input.splice(at..at, token.iter().copied());
            }
            4 => {
                let end = at + random.below(input.len() + 1 - at).min(64);
                let copy = input[at..end].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            5 => {
                let end = at + random.below(input.len() + 1 - at).min(16);
                input.drain(at..end);
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
        .iter()
        .map(|file| std::fs::read(file).expect("a file of the corpus"))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attempt(name: &str, target: fn(&[u8]), input: &[u8]) {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = catch_unwind(AssertUnwindSafe(|| target(input)));
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    let said = || format!("target {name}, SHUNT_FUZZ_INPUT={}", hex(input));
    assert!(result.is_ok(), "{}", said());
    assert!(peak <= MEMORY_MAX, "{peak} bytes allocated, {}", said());
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect(name))
}

/// One test, so that nothing else allocates at the same time.
#[test]
fn no_bytes_make_a_decoder_panic_grow_or_change_what_it_was_given() {
    let limit = Duration::from_secs(number("SHUNT_FUZZ_SECONDS").unwrap_or(2));
    let seed = number("SHUNT_FUZZ_SEED").unwrap_or(1);
    let given = std::env::var("SHUNT_FUZZ_INPUT").ok().map(|text| {
        let digits = text.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.map(byte).collect::<Vec<u8>>()
    });
    for (name, target) in fuzz::TARGETS {
        if let Some(input) = &given {
            attempt(name, *target, input);
            continue;
        }
        let corpus = corpus(name);
        for input in &corpus {
            attempt(name, *target, input);
        }
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (begun, mut count) = (Instant::now(), 0);
        while begun.elapsed() < limit {
            attempt(name, *target, &mutate(&mut random, &corpus));
            count += 1;
        }
        println!("{name}: {count} inputs");
    }
}
