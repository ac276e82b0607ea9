//! Changes of bytes, whatever they mean.

use std::ops::Range;

use crate::corpus::Corpus;
use crate::random::Random;
use crate::target::Format;

/// Changes an input somewhere.
pub(super) fn change(input: &mut Vec<u8>, corpus: &Corpus, random: &mut Random, bytes_max: usize) {
    let at = random.below(input.len() + 1);
    match random.below(12) {
        0 => flip_bit(input, random),
        1 => overwrite(input, at, &[random.byte()]),
        2 => insert(input, at, &[random.byte()]),
        3 => input.truncate(at),
        4 => {
            input.drain(part(input, random));
        }
        5 => splice(input, at, corpus, random),
        6 => repeat(input, random, bytes_max),
        7 => overwrite(input, at, &number(random)),
        8 | 9 => insert(input, at, &word(corpus, random)),
        10 => {
            let replaced = part(input, random);
            input.splice(replaced, word(corpus, random));
        }
        _ => replace_digits(input, random),
    }
}

fn flip_bit(input: &mut [u8], random: &mut Random) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

fn overwrite(input: &mut [u8], at: usize, with: &[u8]) {
    for (byte, new) in input.iter_mut().skip(at).zip(with) {
        *byte = *new;
    }
}

fn insert(input: &mut Vec<u8>, at: usize, new: &[u8]) {
    input.splice(at..at, new.iter().copied());
}

/// The beginning of this one and the end of another one.
fn splice(input: &mut Vec<u8>, at: usize, corpus: &Corpus, random: &mut Random) {
    input.truncate(at);
    if let Some(other) = random.pick(&corpus.samples) {
        input.extend_from_slice(&other[random.below(other.len() + 1)..]);
    }
}

/// A part again and again, up to the greatest length: nesting, long lists, long texts.
fn repeat(input: &mut Vec<u8>, random: &mut Random, bytes_max: usize) {
    let part = part(input, random);
    if part.is_empty() {
        return;
    }
    let repeated = input[part.clone()].to_vec();
    let room = bytes_max.saturating_sub(input.len()) / repeated.len();
    let times = match random.once_in(2) {
        true => room,
        false => random.below(room.min(64)),
    };
    let at = part.end;
    input.splice(at..at, repeated.repeat(times));
}

/// A run of digits as another number.
fn replace_digits(input: &mut Vec<u8>, random: &mut Random) {
    let from = random.below(input.len());
    let Some(start) = input.iter().skip(from).position(u8::is_ascii_digit) else {
        return;
    };
    let start = from + start;
    let digits = input[start..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let other = random.pick(&NUMBERS).copied().unwrap_or_default();
    input.splice(start..start + digits, other.bytes());
}

/// A part of at most some hundred bytes.
fn part(input: &[u8], random: &mut Random) -> Range<usize> {
    let start = random.below(input.len());
    let long = match random.once_in(4) {
        true => 512,
        false => 16,
    };
    start..input.len().min(start + random.below(long))
}

/// A number at the edge of some width, in either order of bytes.
fn number(random: &mut Random) -> Vec<u8> {
    let edges = [
        0,
        1,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0xffff,
        0x7fff_ffff,
        0xffff_ffff,
        u64::MAX >> 1,
        u64::MAX,
    ];
    let number = random.pick(&edges).copied().unwrap_or_default();
    let bytes = 1 << random.below(4);
    match random.once_in(2) {
        true => number.to_le_bytes()[..bytes].to_vec(),
        false => number.to_be_bytes()[8 - bytes..].to_vec(),
    }
}

/// Something that a decoder of this format may look at.
fn word(corpus: &Corpus, random: &mut Random) -> Vec<u8> {
    let of_format: &[&[u8]] = match corpus.format() {
        Format::Json => &JSON_WORDS,
        Format::MessagePack => &MESSAGE_PACK_WORDS,
        Format::Text => &TEXT_WORDS,
        Format::Bytes => &[],
    };
    let word = match random.once_in(2) {
        true => random.pick(of_format).map(|word| word.to_vec()),
        false => random.pick(&corpus.words).cloned(),
    };
    let word = word.unwrap_or_else(|| number(random));
    match (corpus.format(), random.once_in(2)) {
        (Format::Json, true) => [b"\"", &word[..], b"\":"].concat(),
        (Format::MessagePack, true) if word.len() < 32 => {
            let length = u8::try_from(word.len()).expect("it is below 32");
            [&[0xa0 | length], &word[..]].concat()
        }
        _ => word,
    }
}

/// Numbers that are too large, too small or no numbers for some type.
pub(super) const NUMBERS: [&str; 16] = [
    "0",
    "-0",
    "-1",
    "1e308",
    "-1e308",
    "1e999",
    "1e-400",
    "0.1e-7",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "340282366920938463463374607431768211456",
];

const JSON_WORDS: [&[u8]; 24] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\",
    b"null",
    b"true",
    b"false",
    b"{}",
    b"[]",
    b"[0,",
    b"{\"a\":",
    b"NaN",
    b"Infinity",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00\\ud800",
    b"\xff",
    b"\xef\xbb\xbf",
    b"1e999",
    b"\n",
];

/// Lengths that the input does not have, deep nesting, and types that nobody expects.
const MESSAGE_PACK_WORDS: [&[u8]; 24] = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xde\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xda\xff\xff",
    b"\xd9\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc5\xff\xff",
    b"\xc4\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xc7\xff\x01",
    b"\xd8\x01",
    b"\x91\x91\x91\x91\x91\x91\x91\x91",
    b"\x81\x81\x81\x81",
    b"\x90",
    b"\x80",
    b"\xc0",
    b"\xc1",
    b"\xc2",
    b"\xc3",
    b"\xcb\x7f\xf8\0\0\0\0\0\0",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\0\0\0\0\0\0\0",
];

const TEXT_WORDS: [&[u8]; 24] = [
    b"\0",
    b"\r\n",
    b"\n",
    b"\t",
    b" ",
    b".",
    b"..",
    b"/",
    b"=",
    b"-",
    b"*",
    b">",
    b"{{",
    b"}}",
    b"{%",
    b"%}",
    b"[[",
    b"]]",
    b"\"",
    b"'",
    b"#",
    b"\xc3\xa4",
    b"\xf0\x9f\x98\x80",
    b"99999999999999999999",
];
