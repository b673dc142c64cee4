//! The side that asks for a proof.

use crate::av::{self, AvPairs};
use crate::fields::array;
use crate::framing::{Framing, Unpacked, unpack};
use crate::message::{Authenticate, Challenge, MIC, Negotiate, flag};
use crate::primitives::{Key, hmac, rc4_once, utf16};
use crate::proof::{Response as Answer, capitals, response_key};
use crate::spnego::{Init, Response, State};
use crate::{ChannelBinding, NtHash, Refused, Session};
use hmac::Mac as _;

/// Who the acceptor says it is.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The host's name.
    pub computer: &'a str,
}

/// What is new in every handshake.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// Random bytes that nobody can foresee.
    pub challenge: [u8; 8],
    /// Now, in steps of 100 ns since 1601.
    pub time: u64,
}

/// What comes of a token.
#[derive(Debug)]
pub enum Step {
    /// A token for the initiator, who has to send another.
    Answer(Vec<u8>),
    /// Somebody says who they are; whether that is so, [`Claim::prove`] tells.
    Claim(Box<Claim>),
}

/// A handshake under way. It is for one connection, and for one attempt: what fails cannot be gone on with.
#[derive(Debug)]
pub struct Acceptor {
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Start,
    /// NTLM was chosen of what was offered; its first message is to come.
    Chosen(Framing),
    Challenged {
        framing: Framing,
        challenge: [u8; 8],
        flags: u32,
        /// Both messages so far.
        said: Vec<u8>,
    },
    Over,
}

/// What may be agreed on, beside what must be.
const MAY: u32 = flag::SIGN
    | flag::SEAL
    | flag::ALWAYS_SIGN
    | flag::KEY_EXCHANGE
    | flag::KEY_128
    | flag::KEY_56
    | flag::VERSION
    | flag::REQUEST_TARGET;

impl Default for Acceptor {
    fn default() -> Self {
        Acceptor {
            stage: Stage::Start,
        }
    }
}

impl Acceptor {
    /// Whether a token begins a handshake rather than going on with one.
    pub fn begins(token: &[u8]) -> bool {
        Init::is_one(token) || Negotiate::read(token).is_ok()
    }

    /// Takes the next token.
    pub fn step(&mut self, token: &[u8], names: Names<'_>, fresh: Fresh) -> Result<Step, Refused> {
        // An error leaves nothing to go on with.
        match (
            std::mem::replace(&mut self.stage, Stage::Over),
            unpack(token)?,
        ) {
            (Stage::Start, Unpacked::Message(message)) => {
                self.challenge(Framing::Bare, &message, names, fresh)
            }
            (Stage::Start, Unpacked::Init(init)) => {
                let place = init.ntlm.ok_or(Refused::Mechanism)?;
                let framing = Framing::Spnego {
                    list: init.list,
                    fallback: place > 0,
                };
                match init.token {
                    Some(message) if place == 0 => self.challenge(framing, &message, names, fresh),
                    // For a mechanism that is not spoken here, or none.
                    _ => {
                        let chosen = Response {
                            state: Some(match place {
                                0 => State::Incomplete,
                                _ => State::WantsIntegrity,
                            }),
                            is_ntlm: Some(true),
                            ..Response::default()
                        };
                        self.stage = Stage::Chosen(framing);
                        Ok(Step::Answer(chosen.write()))
                    }
                }
            }
            (Stage::Chosen(framing), Unpacked::Response(response)) => {
                let message = response
                    .token
                    .ok_or(Refused::Malformed("a token without a message"))?;
                self.challenge(framing, &message, names, fresh)
            }
            (
                Stage::Challenged {
                    framing,
                    challenge,
                    flags,
                    said,
                },
                token,
            ) => {
                let (message, list_mic) = match (token, &framing) {
                    (Unpacked::Message(message), Framing::Bare) => (message, None),
                    (Unpacked::Response(response), Framing::Spnego { .. }) => {
                        let message = response
                            .token
                            .ok_or(Refused::Malformed("a token without a message"))?;
                        (message, response.mic)
                    }
                    _ => return Err(Refused::OutOfTurn("packed otherwise than before")),
                };
                let claim = Claim::read(framing, challenge, flags, said, message, list_mic)?;
                Ok(Step::Claim(Box::new(claim)))
            }
            _ => Err(Refused::OutOfTurn("no such token was asked for")),
        }
    }

    fn challenge(
        &mut self,
        framing: Framing,
        message: &[u8],
        names: Names<'_>,
        fresh: Fresh,
    ) -> Result<Step, Refused> {
        let offer = Negotiate::read(message)?;
        // Some offer Unicode only once they are asked for it; who does not take it then is refused.
        for (wanted, name) in [
            (flag::NTLM, "NTLM"),
            (flag::EXTENDED, "extended session security"),
        ] {
            if offer.flags & wanted == 0 {
                return Err(Refused::Missing(name));
            }
        }
        let flags = offer.flags & MAY
            | flag::UNICODE
            | flag::NTLM
            | flag::EXTENDED
            | flag::TARGET_INFO
            | flag::TARGET_IS_SERVER;
        // The old kind of name has 15 characters.
        let short: String = names
            .computer
            .split('.')
            .next()
            .unwrap_or_default()
            .chars()
            .take(15)
            .collect();
        let short = short.to_uppercase();
        let dns = utf16(names.computer);
        let challenge = Challenge {
            flags,
            challenge: fresh.challenge,
            target: short.clone(),
            info: AvPairs(vec![
                (av::NB_DOMAIN, utf16(&short)),
                (av::NB_COMPUTER, utf16(&short)),
                (av::DNS_DOMAIN, dns.clone()),
                (av::DNS_COMPUTER, dns),
                // With it, clients promise an integrity code.
                (av::TIME, fresh.time.to_le_bytes().to_vec()),
            ]),
        }
        .write()?;
        let answer = match &framing {
            Framing::Bare => challenge.clone(),
            Framing::Spnego { .. } => Response {
                state: Some(State::Incomplete),
                is_ntlm: Some(true),
                token: Some(challenge.clone()),
                mic: None,
            }
            .write(),
        };
        self.stage = Stage::Challenged {
            framing,
            challenge: fresh.challenge,
            flags,
            said: [message, &challenge].concat(),
        };
        Ok(Step::Answer(answer))
    }
}

/// Somebody says who they are, and has sent a proof that has yet to be looked at.
#[derive(Debug)]
pub struct Claim {
    framing: Framing,
    challenge: [u8; 8],
    flags: u32,
    /// All three messages, the integrity code blank.
    said: Vec<u8>,
    mic: Option<[u8; 16]>,
    list_mic: Option<Vec<u8>>,
    message: Authenticate,
    answer: Answer,
    target: Option<String>,
}

/// What a right proof gives.
#[derive(Debug)]
pub struct Proved {
    /// The keys both sides now have.
    pub session: Session,
    /// The last token for the initiator, where there is one.
    pub answer: Option<Vec<u8>>,
}

impl Claim {
    fn read(
        framing: Framing,
        challenge: [u8; 8],
        offered: u32,
        mut said: Vec<u8>,
        bytes: Vec<u8>,
        list_mic: Option<Vec<u8>>,
    ) -> Result<Self, Refused> {
        let message = Authenticate::read(&bytes)?;
        if message.user.is_empty() || message.flags & flag::ANONYMOUS != 0 {
            return Err(Refused::Anonymous);
        }
        let answer = Answer::read(&message.nt)?;
        let target = answer
            .info
            .text(av::TARGET_NAME)?
            .filter(|target| !target.is_empty());
        let before = said.len();
        said.extend(bytes);
        let promised = answer.info.flags()? & av::HAS_MIC != 0;
        let mic = match (promised, message.mic) {
            (true, None) => return Err(Refused::Integrity),
            (true, told) => {
                if let Some(place) = said.get_mut(before + MIC.start..before + MIC.end) {
                    place.fill(0);
                }
                told
            }
            (false, _) => None,
        };
        Ok(Claim {
            framing,
            challenge,
            // What was not offered was not agreed on.
            flags: message.flags & offered,
            said,
            mic,
            list_mic,
            message,
            answer,
            target,
        })
    }

    /// The user's name, as the initiator writes it.
    pub fn user(&self) -> &str {
        &self.message.user
    }

    /// The domain or host the user is said to be of.
    pub fn domain(&self) -> &str {
        &self.message.domain
    }

    /// Which service the initiator means to talk to (`HTTP/host`), where it says so.
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// Checks the proof with what is known of that user: the proof itself, then that nobody changed the handshake, then that it was
    /// meant for this connection. `binding` is that of the connection, where it is one of TLS.
    ///
    /// Where there is no such user, take [`NtHash::of_nobody`]: the work is the same, and the end known.
    pub fn prove(
        self: Box<Self>,
        hash: &NtHash,
        binding: Option<&ChannelBinding>,
    ) -> Result<Proved, Refused> {
        let base = self.base_key(hash)?;
        let session_key = self.session_key(&base)?;
        if let Some(mic) = self.mic {
            hmac(&session_key, &[&self.said])?
                .verify_slice(&mic)
                .map_err(|_| Refused::Integrity)?;
        }
        match self.answer.info.get(av::BINDINGS) {
            None => {}
            Some(told) if told == [0; 16] => {}
            Some(told) if binding.is_some_and(|own| own.0 == told) => {}
            Some(_) => return Err(Refused::Binding),
        }
        if self.flags & flag::EXTENDED == 0 {
            return Err(Refused::Missing("extended session security"));
        }
        let mut session = Session::new(&session_key, self.flags, false)?;
        let answer = self.end(&mut session)?;
        Ok(Proved { session, answer })
    }

    fn base_key(&self, hash: &NtHash) -> Result<Key, Refused> {
        let key = |upper: &str| response_key(hash, upper, &self.message.domain);
        let (one, other) = capitals(&self.message.user);
        let checked = self.answer.check(&key(&one)?, &self.challenge);
        match checked {
            Err(Refused::Proof) if one != other => {
                self.answer.check(&key(&other)?, &self.challenge)
            }
            checked => checked,
        }
    }

    fn session_key(&self, base: &Key) -> Result<Key, Refused> {
        let exchanged = self.flags & flag::KEY_EXCHANGE != 0;
        let used = self.flags & (flag::SIGN | flag::SEAL) != 0;
        if !exchanged || !used {
            return Ok(*base);
        }
        if self.message.session_key.len() != 16 {
            return Err(Refused::Malformed("a session key of another length"));
        }
        rc4_once(base, array(&self.message.session_key, 0)?)
    }

    /// The end of SPNEGO: the signatures of the list of mechanisms.
    fn end(&self, session: &mut Session) -> Result<Option<Vec<u8>>, Refused> {
        let Framing::Spnego { list, fallback } = &self.framing else {
            return Ok(None);
        };
        let mut end = Response {
            state: Some(State::Completed),
            ..Response::default()
        };
        match &self.list_mic {
            // Without keys to sign, what stands there is none.
            Some(told) if session.can_sign() => {
                session.check_list(list, told)?;
                end.mic = Some(session.sign_list(list)?.to_vec());
            }
            _ if *fallback => return Err(Refused::Integrity),
            _ => {}
        }
        Ok(Some(end.write()))
    }
}
