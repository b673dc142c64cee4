//! Inputs from inputs.

/// A small generator of random numbers (splitmix64): the same seed, the same run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 for 0).
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 {
            0
        } else {
            (self.number() % bound as u64) as usize
        }
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }
}

/// Numbers at the edges of something.
const NUMBERS: [u64; 14] = [
    0,
    1,
    7,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Changes `input` in one to eight ways, with words of `dictionary` and parts of `other`; at most `limit` bytes stay.
pub fn mutate(
    input: &mut Vec<u8>,
    other: &[u8],
    dictionary: &[&str],
    limit: usize,
    random: &mut Random,
) {
    for _ in 0..=random.below(8) {
        once(input, other, dictionary, random);
    }
    input.truncate(limit);
}

fn once(input: &mut Vec<u8>, other: &[u8], dictionary: &[&str], random: &mut Random) {
    match random.below(12) {
        0 => {
            let bit = 1 << random.below(8);
            if let Some(byte) = place(input, random) {
                *byte ^= bit;
            }
        }
        1 => {
            let value = random.number() as u8;
            if let Some(byte) = place(input, random) {
                *byte = value;
            }
        }
        2 => {
            let (from, to) = span(input.len(), 64, random);
            input.drain(from..to);
        }
        3 => {
            // Again, once or many times: depth and length without end are classics.
            let (from, to) = span(input.len(), 64, random);
            let part = input.get(from..to).unwrap_or_default().to_vec();
            let times = if random.below(8) == 0 {
                random.below(200)
            } else {
                1
            };
            let many = part.repeat(times);
            input.splice(to..to, many);
        }
        4 => {
            let bytes: Vec<u8> = (0..=random.below(4))
                .map(|_| random.number() as u8)
                .collect();
            insert(input, &bytes, random);
        }
        5 | 6 => {
            let word = random.pick(dictionary).copied().unwrap_or_default();
            insert(input, word.as_bytes(), random);
        }
        7 => {
            // In place of what is there.
            let word = random.pick(dictionary).copied().unwrap_or_default();
            let (from, to) = span(input.len(), word.len().max(1), random);
            input.splice(from..to, word.bytes());
        }
        8 => {
            let (from, to) = span(other.len(), 256, random);
            insert(input, other.get(from..to).unwrap_or_default(), random);
        }
        9 => {
            let number = random.pick(&NUMBERS).copied().unwrap_or_default();
            let width = 1 << random.below(4);
            let bytes = match random.below(2) {
                0 => number.to_le_bytes()[..width].to_vec(),
                _ => number.to_be_bytes()[8 - width..].to_vec(),
            };
            let (from, _) = span(input.len(), 1, random);
            let to = (from + width).min(input.len());
            input.splice(from..to, bytes);
        }
        10 => {
            let number = random.pick(&NUMBERS).copied().unwrap_or_default();
            insert(input, number.to_string().as_bytes(), random);
        }
        _ => {
            let (from, to) = span(input.len(), 64, random);
            let part: Vec<u8> = input.drain(from..to).collect();
            insert(input, &part, random);
        }
    }
}

fn place<'a>(input: &'a mut [u8], random: &mut Random) -> Option<&'a mut u8> {
    let at = random.below(input.len());
    input.get_mut(at)
}

fn span(length: usize, longest: usize, random: &mut Random) -> (usize, usize) {
    let from = random.below(length + 1);
    let to = (from + random.below(longest + 1)).min(length);
    (from, to)
}

fn insert(input: &mut Vec<u8>, bytes: &[u8], random: &mut Random) {
    let at = random.below(input.len() + 1);
    input.splice(at..at, bytes.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs_and_another_seed_others() {
        let run = |seed| {
            let mut random = Random::new(seed);
            let mut input = b"<a b=\"c\"/>".to_vec();
            (0..1000)
                .map(|_| {
                    mutate(&mut input, b"<other/>", &["xmlns"], 500, &mut random);
                    input.clone()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn inputs_grow_and_shrink_within_the_limit() {
        let mut random = Random::new(3);
        let mut input = Vec::new();
        let mut longest = 0;
        for _ in 0..10_000 {
            mutate(&mut input, b"x", &[], 300, &mut random);
            longest = longest.max(input.len());
        }
        assert_eq!(longest, 300);
    }
}
