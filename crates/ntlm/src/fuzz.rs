//! Entry points for fuzzing: any bytes in; no panic, no unbounded time or memory.
#![doc(hidden)]

use crate::framing::{Unpacked, unpack};
use crate::{Acceptor, ChannelBinding, Fresh, Initiator, Login, Names, NtHash, Random, Step};

/// A token in every place where one of strangers is taken.
pub fn token(bytes: &[u8]) {
    let names = Names { computer: "host" };
    let fresh = Fresh {
        challenge: [1; 8],
        time: 1,
    };
    let _ = Acceptor::default().step(bytes, names, fresh);
    // The message within as the one that claims, packed as it came.
    if let Ok((_, first)) = Initiator::begin() {
        let first = match unpack(bytes) {
            Ok(Unpacked::Message(_)) => match unpack(&first) {
                Ok(Unpacked::Init(init)) => init.token.unwrap_or_default(),
                _ => first,
            },
            _ => first,
        };
        let mut acceptor = Acceptor::default();
        if acceptor.step(&first, names, fresh).is_ok()
            && let Ok(Step::Claim(claim)) = acceptor.step(bytes, names, fresh)
        {
            let proved = claim.prove(&NtHash::of_nobody([3; 16]), None);
            assert!(proved.is_err(), "nobody knows that hash");
        }
    }
    // As a challenge, and as the end.
    let random = Random {
        challenge: [2; 8],
        session_key: [3; 16],
        time: 1,
    };
    if let Ok((initiator, _)) = Initiator::begin()
        && let Ok((_, finish)) =
            initiator.answer(bytes, &Login::new("d\\u", "p"), "HTTP/h", None, random)
    {
        let _ = finish.end(Some(bytes));
    }
    let _ = ChannelBinding::of_certificate(bytes);
}
