//! Whole handshakes, and what somebody in between or without the password can make of them.
#![expect(
    clippy::expect_used,
    reason = "a handshake that should work and does not is a failed test"
)]

use ntlm::{
    Acceptor, ChannelBinding, Claim, Fresh, Initiator, Login, Names, NtHash, Random, Refused,
    Session, Step,
};

const NAMES: Names<'static> = Names {
    computer: "host.example.org",
};
const FRESH: Fresh = Fresh {
    challenge: [1, 2, 3, 4, 5, 6, 7, 8],
    time: 133_000_000_000_000_000,
};
const RANDOM: Random = Random {
    challenge: [9; 8],
    session_key: [0x5a; 16],
    time: 1,
};
const SECRET: &str = "correct horse";

fn answer(step: Result<Step, Refused>) -> Vec<u8> {
    match step.expect("a step") {
        Step::Answer(token) => token,
        Step::Claim(_) => panic!("too soon"),
    }
}

fn claim(step: Result<Step, Refused>) -> Box<Claim> {
    match step.expect("a step") {
        Step::Claim(claim) => claim,
        Step::Answer(_) => panic!("a claim was expected"),
    }
}

/// The acceptor after its challenge, with the token that answers it and the initiator's end.
fn up_to_the_claim(
    login: &Login,
    binding: Option<&ChannelBinding>,
) -> (Acceptor, Vec<u8>, ntlm::Finish) {
    let (initiator, first) = Initiator::begin().expect("begun");
    let mut acceptor = Acceptor::default();
    let challenge = answer(acceptor.step(&first, NAMES, FRESH));
    let (token, finish) = initiator
        .answer(&challenge, login, "HTTP/host.example.org", binding, RANDOM)
        .expect("answered");
    (acceptor, token, finish)
}

fn claimed(login: &Login) -> (Box<Claim>, ntlm::Finish) {
    let (mut acceptor, token, finish) = up_to_the_claim(login, None);
    (claim(acceptor.step(&token, NAMES, FRESH)), finish)
}

fn passes(ours: &mut Session, theirs: &mut Session) {
    for text in [b"first".as_slice(), b"", b"third"] {
        let (signature, sealed) = ours.seal(text).expect("sealed");
        assert_eq!(theirs.open(&signature, &sealed).as_deref(), Ok(text));
    }
}

/// Where the message lies in a token.
fn message_in(token: &[u8]) -> usize {
    token
        .windows(8)
        .position(|w| w == b"NTLMSSP\0")
        .expect("a message")
}

#[test]
fn a_message_made_without_the_password_is_refused() {
    // Whatever the client announces: with an integrity code, without one, and with a proof of zeros.
    let (claimed_wrong, _) = claimed(&Login::new("alice", "a guess"));
    assert_eq!(
        claimed_wrong.prove(&NtHash::of(SECRET), None).err(),
        Some(Refused::Proof)
    );
    let (mut acceptor, mut token, _) = up_to_the_claim(&Login::new("alice", SECRET), None);
    let at = message_in(&token);
    let nt = at + u32::from_le_bytes(token[at + 24..at + 28].try_into().expect("four")) as usize;
    token[nt..nt + 16].fill(0);
    // The promise of an integrity code is taken back with it (attribute 6).
    let flags = token
        .windows(4)
        .position(|w| w == [6, 0, 4, 0])
        .expect("flags");
    token[flags + 4] = 0;
    let forged = claim(acceptor.step(&token, NAMES, FRESH));
    assert_eq!(
        forged.prove(&NtHash::of(SECRET), None).err(),
        Some(Refused::Proof)
    );
}

#[test]
fn the_right_password_gives_both_sides_the_same_keys() {
    for name in ["alice", "HOST\\Alice", "groß", "émile"] {
        let (claim, finish) = claimed(&Login::new(name, SECRET));
        assert_eq!(claim.user(), name.rsplit('\\').next().expect("a name"));
        assert_eq!(claim.target(), Some("HTTP/host.example.org"));
        let proved = claim.prove(&NtHash::of(SECRET), None).expect("proved");
        let mut theirs = proved.session;
        let mut ours = finish.end(proved.answer.as_deref()).expect("ended");
        assert!(ours.can_seal() && theirs.can_seal());
        passes(&mut ours, &mut theirs);
        passes(&mut theirs, &mut ours);
    }
}

#[test]
fn a_handshake_for_another_challenge_is_refused() {
    let (_, token, _) = up_to_the_claim(&Login::new("alice", SECRET), None);
    let (_, first) = Initiator::begin().expect("begun");
    let mut other = Acceptor::default();
    let fresh = Fresh {
        challenge: [8; 8],
        ..FRESH
    };
    answer(other.step(&first, NAMES, fresh));
    let taken = claim(other.step(&token, NAMES, fresh));
    assert_eq!(
        taken.prove(&NtHash::of(SECRET), None).err(),
        Some(Refused::Proof)
    );
}

#[test]
fn a_token_is_taken_once_and_in_its_turn() {
    let (mut acceptor, token, _) = up_to_the_claim(&Login::new("alice", SECRET), None);
    let early = Acceptor::default().step(&token, NAMES, FRESH);
    assert!(matches!(early, Err(Refused::OutOfTurn(_))), "{early:?}");
    claim(acceptor.step(&token, NAMES, FRESH));
    let again = acceptor.step(&token, NAMES, FRESH);
    assert!(matches!(again, Err(Refused::OutOfTurn(_))), "{again:?}");
}

#[test]
fn no_bit_of_a_signed_handshake_can_be_changed() {
    let (_, token, _) = up_to_the_claim(&Login::new("alice", SECRET), None);
    let at = message_in(&token);
    let mut taken = Vec::new();
    // One bit of each byte.
    for bit in (at..token.len()).map(|byte| byte * 8 + byte % 8) {
        let (mut acceptor, mut token, _) = up_to_the_claim(&Login::new("alice", SECRET), None);
        token[bit / 8] ^= 1 << (bit % 8);
        let Ok(Step::Claim(claim)) = acceptor.step(&token, NAMES, FRESH) else {
            continue;
        };
        if claim.prove(&NtHash::of(SECRET), None).is_ok() {
            taken.push(bit / 8 - at);
        }
    }
    assert!(taken.is_empty(), "changed bytes that were taken: {taken:?}");
}

#[test]
fn a_changed_offer_or_challenge_breaks_the_integrity_code() {
    let (initiator, first) = Initiator::begin().expect("begun");
    let mut acceptor = Acceptor::default();
    // Somebody in between takes the full keys (bit 29) out of the offer.
    let mut weaker = first;
    let at = message_in(&weaker);
    weaker[at + 15] &= !0x20;
    let challenge = answer(acceptor.step(&weaker, NAMES, FRESH));
    let (token, _) = initiator
        .answer(&challenge, &Login::new("alice", SECRET), "", None, RANDOM)
        .expect("answered");
    let claim = claim(acceptor.step(&token, NAMES, FRESH));
    assert_eq!(
        claim.prove(&NtHash::of(SECRET), None).err(),
        Some(Refused::Integrity)
    );
}

#[test]
fn a_handshake_of_one_tls_connection_does_not_pass_on_another() {
    let own = ChannelBinding::of_certificate(b"ours");
    let other = ChannelBinding::of_certificate(b"theirs");
    let prove = |told: Option<&ChannelBinding>, is: Option<&ChannelBinding>| {
        let (mut acceptor, token, _) = up_to_the_claim(&Login::new("alice", SECRET), told);
        let claim = claim(acceptor.step(&token, NAMES, FRESH));
        claim.prove(&NtHash::of(SECRET), is).err()
    };
    assert_eq!(prove(Some(&own), Some(&own)), None);
    assert_eq!(prove(Some(&other), Some(&own)), Some(Refused::Binding));
    assert_eq!(prove(Some(&own), None), Some(Refused::Binding));
    // Clients that know no bindings are let in.
    assert_eq!(prove(None, Some(&own)), None);
}

/// `AUTHENTICATE` of MS-NLMP 4.2.4.3, which answers the challenge 0123456789abcdef.
const DOCUMENTED: &str = "4e544c4d5353500003000000180018006c00000054005400840000000c000c0048000000080008005400000010001000\
5c00000010001000d8000000358288e20501280a0000000f44006f006d00610069006e00550073006500720043004f004d005000550054004500520086c35097\
ac9cec102554764a57cccc19aaaaaaaaaaaaaaaa68cd0ab851e51c96aabc927bebef6a1c01010000000000000000000000000000aaaaaaaaaaaaaaaa00000000\
02000c0044006f006d00610069006e0001000c005300650072007600650072000000000000000000c5dad2544fc9799094ce1ce90bc9d03e";

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    let byte = |d: &[u8]| u8::from_str_radix(std::str::from_utf8(d).expect("text"), 16);
    digits.map(|d| byte(d).expect("hex")).collect()
}

/// The first message with these flags, as it is.
fn offer(flags: u32) -> Vec<u8> {
    let mut message = b"NTLMSSP\0\x01\0\0\0".to_vec();
    message.extend(flags.to_le_bytes());
    message.extend([0; 24]);
    message
}

#[test]
fn the_documented_answer_is_taken_and_seals_as_documented() {
    let mut acceptor = Acceptor::default();
    let fresh = Fresh {
        challenge: [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef],
        time: 0,
    };
    answer(acceptor.step(&offer(0xe28a_8233), NAMES, fresh));
    let claim = claim(acceptor.step(&bytes(DOCUMENTED), NAMES, fresh));
    assert_eq!((claim.domain(), claim.user()), ("Domain", "User"));
    let proved = claim.prove(&NtHash::of("Password"), None).expect("proved");
    assert!(proved.answer.is_none());
    let mut session = proved.session;
    let opened = session.open(
        &bytes("010000007fb38ec5c55d497600000000"),
        &bytes("54e50165bf1936dc996020c1811b0f06fb5f"),
    );
    let expected: Vec<u8> = "Plaintext"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    assert_eq!(opened, Ok(expected));
}

#[test]
fn nobody_and_older_versions_are_refused() {
    let patch = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut acceptor = Acceptor::default();
        answer(acceptor.step(&offer(0xe28a_8233), NAMES, FRESH));
        let mut message = bytes(DOCUMENTED);
        change(&mut message);
        acceptor.step(&message, NAMES, FRESH).err()
    };
    // No name, the flag of anonymity, an answer of NTLMv1 (24 bytes), none at all.
    assert_eq!(patch(&|m| m[36..40].fill(0)), Some(Refused::Anonymous));
    assert_eq!(patch(&|m| m[61] |= 8), Some(Refused::Anonymous));
    assert_eq!(patch(&|m| m[20] = 24), Some(Refused::Version));
    assert_eq!(patch(&|m| m[20..24].fill(0)), Some(Refused::Version));
    assert!(matches!(
        patch(&|m| m.truncate(100)),
        Some(Refused::Malformed(_))
    ));
}

#[test]
fn offers_without_what_is_needed_are_refused() {
    for (missing, name) in [(1 << 9, "NTLM"), (1 << 19, "extended session security")] {
        let refused = Acceptor::default().step(&offer(0xe28a_8233 & !missing), NAMES, FRESH);
        assert_eq!(refused.err(), Some(Refused::Missing(name)));
    }
    // One that offers no Unicode (curl) is asked for it, and has to take it.
    let mut acceptor = Acceptor::default();
    answer(acceptor.step(&offer(0xe28a_8233 & !1), NAMES, FRESH));
    let mut message = bytes(DOCUMENTED);
    message[60] &= !1;
    let refused = acceptor.step(&message, NAMES, FRESH);
    assert_eq!(refused.err(), Some(Refused::Missing("Unicode")));
    let kerberos = b"\x60\x0d\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x01\0";
    let refused = Acceptor::default().step(kerberos, NAMES, FRESH);
    assert_eq!(refused.err(), Some(Refused::Mechanism));
}

#[test]
fn every_token_of_the_fuzz_corpus_is_taken_without_panic() {
    let (_, first) = Initiator::begin().expect("begun");
    let (_, second, _) = up_to_the_claim(&Login::new("alice", SECRET), None);
    let mut given = vec![first, second, offer(0xe28a_8233), bytes(DOCUMENTED)];
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/token");
    for entry in std::fs::read_dir(corpus).expect("the corpus") {
        given.push(std::fs::read(entry.expect("an entry").path()).expect("a token"));
    }
    assert!(given.len() > 4, "the corpus is empty");
    for given in given {
        ntlm::fuzz::token(&given);
        for end in 0..given.len() {
            ntlm::fuzz::token(&given[..end]);
        }
    }
}
