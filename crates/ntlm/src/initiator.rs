//! The side that proves who it is.

use crate::av;
use crate::framing::{Unpacked, unpack};
use crate::message::{Authenticate, Challenge, MIC, Negotiate, flag};
use crate::primitives::{hmac_md5, rc4_once, utf16};
use crate::proof::{Response as Answer, capitals, response_key};
use crate::spnego::{Init, Response, State, our_list};
use crate::{ChannelBinding, NtHash, Refused, Session};

/// Who proves, and with what.
#[derive(Clone, Debug)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// The domain or host that knows the user; empty: the other side's own.
    pub domain: String,
    /// Of the password.
    pub hash: NtHash,
}

impl Login {
    /// Of a name as people write it, `DOMAIN\user` or `user`, and a password.
    pub fn new(name: &str, password: &str) -> Self {
        let (domain, user) = name.split_once('\\').unwrap_or(("", name));
        Login {
            user: user.to_owned(),
            domain: domain.to_owned(),
            hash: NtHash::of(password),
        }
    }
}

/// What is new in every handshake: random bytes that nobody can foresee, and the time.
#[derive(Clone, Copy)]
pub struct Random {
    /// Our challenge.
    pub challenge: [u8; 8],
    /// The key of the session.
    pub session_key: [u8; 16],
    /// Now, in steps of 100 ns since 1601, for servers that do not tell theirs.
    pub time: u64,
}

/// A handshake begun.
#[derive(Debug)]
pub struct Initiator {
    offer: Vec<u8>,
    list: Vec<u8>,
}

/// A handshake that has only to be ended.
#[derive(Debug)]
pub struct Finish {
    session: Session,
    list: Vec<u8>,
}

/// What is offered.
const OFFER: u32 = flag::UNICODE
    | flag::REQUEST_TARGET
    | flag::SIGN
    | flag::SEAL
    | flag::NTLM
    | flag::ALWAYS_SIGN
    | flag::EXTENDED
    | flag::TARGET_INFO
    | flag::VERSION
    | flag::KEY_128
    | flag::KEY_56
    | flag::KEY_EXCHANGE;

impl Initiator {
    /// Begins, with the first token for the other side.
    pub fn begin() -> Result<(Self, Vec<u8>), Refused> {
        let offer = Negotiate { flags: OFFER }.write()?;
        let list = our_list();
        let token = Init {
            list: list.clone(),
            ntlm: Some(0),
            token: Some(offer.clone()),
        };
        Ok((Initiator { offer, list }, token.write()))
    }

    /// Answers the challenge. `target` is the service meant (`HTTP/host`), `binding` that of the connection where it is one of TLS.
    pub fn answer(
        self,
        token: &[u8],
        login: &Login,
        target: &str,
        binding: Option<&ChannelBinding>,
        random: Random,
    ) -> Result<(Vec<u8>, Finish), Refused> {
        let (challenge, bare) = match unpack(token)? {
            Unpacked::Message(message) => (message, true),
            Unpacked::Response(response) => {
                if response.state == Some(State::Rejected) || response.is_ntlm == Some(false) {
                    return Err(Refused::Mechanism);
                }
                let message = response
                    .token
                    .ok_or(Refused::Malformed("a token without a message"))?;
                (message, false)
            }
            Unpacked::Init(_) => return Err(Refused::OutOfTurn("a challenge was expected")),
        };
        let read = Challenge::read(&challenge)?;
        if read.flags & flag::EXTENDED == 0 {
            return Err(Refused::Missing("extended session security"));
        }
        let flags = OFFER & read.flags;
        let mut info = read.info;
        let time = match info.get(av::TIME).map(<[u8; 8]>::try_from) {
            Some(Ok(time)) => u64::from_le_bytes(time),
            _ => random.time,
        };
        let told = info.flags()?;
        info.set(av::FLAGS, (told | av::HAS_MIC).to_le_bytes().to_vec());
        info.set(av::TARGET_NAME, utf16(target));
        info.set(
            av::BINDINGS,
            binding.map_or_else(|| vec![0; 16], |own| own.0.to_vec()),
        );
        let (upper, _) = capitals(&login.user);
        let key = response_key(&login.hash, &upper, &login.domain)?;
        let answer = Answer::make(&key, &read.challenge, time, &random.challenge, info)?;
        let base = answer.base_key(&key)?;
        let exchanged = flags & flag::KEY_EXCHANGE != 0;
        let session_key = if exchanged { random.session_key } else { base };
        let mut message = Authenticate {
            flags,
            domain: login.domain.clone(),
            user: login.user.clone(),
            workstation: String::new(),
            // Zeros: the older answer would only help those who guess.
            lm: vec![0; 24],
            nt: answer.write(),
            session_key: match exchanged {
                true => rc4_once(&base, session_key)?.to_vec(),
                false => Vec::new(),
            },
            mic: None,
        }
        .write()?;
        let mic = hmac_md5(&session_key, &[&self.offer, &challenge, &message])?;
        if let Some(place) = message.get_mut(MIC) {
            place.copy_from_slice(&mic);
        }
        let mut session = Session::new(&session_key, flags, true)?;
        let list = self.list;
        let token = match bare {
            true => message,
            false => Response {
                state: Some(State::Incomplete),
                token: Some(message),
                mic: match session.can_sign() {
                    true => Some(session.sign_list(&list)?.to_vec()),
                    false => None,
                },
                ..Response::default()
            }
            .write(),
        };
        Ok((token, Finish { session, list }))
    }
}

impl Finish {
    /// Ends the handshake with the other side's last token, where there was one.
    pub fn end(mut self, token: Option<&[u8]>) -> Result<Session, Refused> {
        let Some(token) = token else {
            return Ok(self.session);
        };
        let Unpacked::Response(response) = unpack(token)? else {
            return Err(Refused::OutOfTurn("the end was expected"));
        };
        if response.state == Some(State::Rejected) {
            return Err(Refused::Proof);
        }
        if let Some(mic) = &response.mic {
            self.session.check_list(&self.list, mic)?;
        }
        Ok(self.session)
    }
}
