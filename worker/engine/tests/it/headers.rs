//! Headers that are wrong, mutated or random: an error or a header that the reference implementation accepts.

use flotilla_worker_engine::{Dtype, Header, HeaderError, ModelConfig};
use proptest::prelude::*;
use safetensors::SafeTensors;

type IsExpected = fn(&HeaderError) -> bool;

/// A file of a header and as much data.
fn file(json: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + data_len, 0);
    bytes
}

fn parse(json: &str, data_len: usize) -> Result<Header, HeaderError> {
    let bytes = file(json, data_len);
    Header::parse(&bytes, bytes.len())
}

const TWO: &str = r#"{"__metadata__":{"format":"pt"},
    "a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
    "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;

#[test]
fn a_good_header_tells_where_its_tensors_lie() {
    let header = parse(TWO, 32).unwrap();
    let start = 8 + TWO.len();
    let b = &header.tensors()["b"];
    assert_eq!(b.file_range, start + 24..start + 32);
    assert_eq!(b.info("b").unwrap().dtype, Dtype::Bf16);
    assert_eq!(header.tensors()["a"].shape, [2, 3]);
}

#[test]
fn a_header_can_be_read_before_the_data_has_arrived() {
    let bytes = file(TWO, 32);
    let end = Header::end(&bytes[..8], bytes.len()).unwrap();
    assert_eq!(end, 8 + TWO.len());
    assert_eq!(
        Header::parse(&bytes[..end], bytes.len()).unwrap(),
        parse(TWO, 32).unwrap()
    );
}

#[test]
fn every_way_to_lie_has_its_error() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let cases: [(String, usize, IsExpected); 11] = [
        (
            TWO.into(),
            31,
            |e| matches!(e, HeaderError::OutOfBounds { tensor, begin: 24, end: 32, data_len: 31 } if tensor == "b"),
        ),
        (TWO.into(), 33, |e| {
            matches!(e, HeaderError::Trailing { rest_bytes: 1 })
        }),
        (
            TWO.replace("[24,32]", "[20,28]"),
            28,
            |e| matches!(e, HeaderError::Overlap { tensor, other } if tensor == "b" && other == "a"),
        ),
        (
            TWO.replace("[24,32]", "[25,33]"),
            33,
            |e| matches!(e, HeaderError::Gap { tensor, gap_bytes: 1 } if tensor == "b"),
        ),
        (one("F32", "[2]", "[0,4]"), 4, |e| {
            matches!(
                e,
                HeaderError::SizeMismatch {
                    dtype: Dtype::F32,
                    found: 4,
                    ..
                }
            )
        }),
        (one("F32", "[4294967296,4294967296]", "[0,0]"), 0, |e| {
            matches!(e, HeaderError::SizeMismatch { .. })
        }),
        (one("F32", "[1]", "[4,0]"), 4, |e| {
            matches!(e, HeaderError::OutOfBounds { begin: 4, end: 0, .. })
        }),
        (one("F32", "[1]", "[0,-4]"), 4, |e| {
            matches!(e, HeaderError::Json(_))
        }),
        (one("F32", "[1]", "[0,99999999999999999999]"), 4, |e| {
            matches!(e, HeaderError::Json(_))
        }),
        (TWO.replace("\"b\"", "\"a\""), 32, |e| {
            matches!(e, HeaderError::Json(_))
        }),
        ("[]".into(), 0, |e| matches!(e, HeaderError::Json(_))),
    ];
    for (json, data_len, is_expected) in cases {
        let error = parse(&json, data_len).unwrap_err();
        assert!(is_expected(&error), "{json}: {error:?}");
    }
}

/// Skipping over metadata once skipped its check as well.
#[test]
fn metadata_must_be_text() {
    let mut bytes = file(TWO, 32);
    let inside_format = 8 + TWO.find("format").unwrap();
    bytes[inside_format] = 0x80;
    assert!(matches!(
        Header::parse(&bytes, bytes.len()),
        Err(HeaderError::Json(_))
    ));
    assert!(matches!(
        parse(&TWO.replace(r#""pt""#, "1"), 32),
        Err(HeaderError::Json(_))
    ));
}

#[test]
fn lengths_are_checked_before_the_header_is_read() {
    let truncated = Header::parse(&[1, 2, 3], 3).unwrap_err();
    assert!(matches!(
        truncated,
        HeaderError::Truncated {
            expected: 8,
            found: 3
        }
    ));
    let absurd = Header::parse(&u64::MAX.to_le_bytes(), 8).unwrap_err();
    assert!(matches!(
        absurd,
        HeaderError::TooLong {
            found: u64::MAX,
            max: 100_000_000
        }
    ));
    let short = Header::parse(&[100, 0, 0, 0, 0, 0, 0, 0, b'{'], 9).unwrap_err();
    assert!(matches!(
        short,
        HeaderError::Truncated {
            expected: 108,
            found: 9
        }
    ));
}

/// What we accept, the reference implementation accepts: being stricter is fine, being looser is not.
fn no_looser_than_the_reference(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(header) = Header::parse(bytes, bytes.len())
        && header
            .tensors()
            .iter()
            .all(|(name, tensor)| tensor.info(name).is_ok())
    {
        let reference = SafeTensors::deserialize(bytes);
        prop_assert!(reference.is_ok(), "{:?} accepts {:?}", reference.err(), header);
    }
    Ok(())
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        no_looser_than_the_reference(&bytes)?;
        prop_assert!(ModelConfig::from_json(&bytes, Some(&bytes)).is_err());
    }

    #[test]
    fn mutated_headers_never_panic(
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
        is_cut: bool,
    ) {
        let mut bytes = file(TWO, 32);
        let header_len = bytes.len() - 32;
        for (index, value) in mutations {
            bytes[index.index(header_len)] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        no_looser_than_the_reference(&bytes)?;
    }

    #[test]
    fn headers_of_mutated_numbers_never_panic(
        numbers in prop::collection::vec(prop_oneof![0u64..40, any::<u64>()], 7),
        data_len in 0usize..40,
    ) {
        let [a, b, c, d, e, f, g] = numbers[..] else { unreachable!("seven numbers") };
        let json = format!(
            r#"{{"a":{{"dtype":"F32","shape":[{a},{b}],"data_offsets":[{c},{d}]}},
                "b":{{"dtype":"BF16","shape":[{e}],"data_offsets":[{f},{g}]}}}}"#
        );
        no_looser_than_the_reference(&file(&json, data_len))?;
    }

    /// Tilings that are valid by construction, so that acceptance is tested as well as refusal.
    #[test]
    fn valid_tilings_are_accepted(shapes in prop::collection::vec((0usize..5, 0usize..5), 0..6)) {
        let mut start = 0;
        let tensors: Vec<String> = shapes.iter().enumerate().map(|(index, (rows, columns))| {
            let end = start + rows * columns * 2;
            let tensor = format!(
                r#""t{index}":{{"dtype":"F16","shape":[{rows},{columns}],"data_offsets":[{start},{end}]}}"#
            );
            start = end;
            tensor
        }).collect();
        let json = format!("{{{}}}", tensors.join(","));
        let header = parse(&json, start);
        prop_assert!(header.is_ok(), "{header:?}");
        no_looser_than_the_reference(&file(&json, start))?;
    }
}
