//! Faults: SOAP code and subcode for standard clients, `WSManFault` and `MSFT_WmiError` for Windows' own.

use cim::Instance;
use cim::xml::Writer;

use super::uri::Family;
use super::{instance, ns};
use crate::{Error, Status};

/// Subcodes of DSP0226 and the standards it binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subcode {
    AccessDenied,
    ActionNotSupported,
    AlreadyExists,
    CannotProcessFilter,
    DestinationUnreachable,
    EncodingLimit,
    FilterDialect,
    InternalError,
    InvalidContext,
    InvalidParameter,
    InvalidSelectors,
    MissingHeader,
    PolymorphismMode,
    QuotaLimit,
    SchemaValidation,
    TimedOut,
    UnsupportedFeature,
}

impl Subcode {
    fn qname(self) -> &'static str {
        match self {
            Subcode::AccessDenied => "w:AccessDenied",
            Subcode::ActionNotSupported => "a:ActionNotSupported",
            Subcode::AlreadyExists => "w:AlreadyExists",
            Subcode::CannotProcessFilter => "n:CannotProcessFilter",
            Subcode::DestinationUnreachable => "a:DestinationUnreachable",
            Subcode::EncodingLimit => "w:EncodingLimit",
            Subcode::FilterDialect => "n:FilterDialectRequestedUnavailable",
            Subcode::InternalError => "w:InternalError",
            Subcode::InvalidContext => "n:InvalidEnumerationContext",
            Subcode::InvalidParameter => "w:InvalidParameter",
            Subcode::InvalidSelectors => "w:InvalidSelectors",
            Subcode::MissingHeader => "a:MessageInformationHeaderRequired",
            Subcode::PolymorphismMode => "b:PolymorphismModeNotSupported",
            Subcode::QuotaLimit => "w:QuotaLimit",
            Subcode::SchemaValidation => "w:SchemaValidationError",
            Subcode::TimedOut => "w:TimedOut",
            Subcode::UnsupportedFeature => "w:UnsupportedFeature",
        }
    }

    /// The Windows error that says the same.
    fn windows(self) -> u32 {
        match self {
            Subcode::AccessDenied => 5,
            Subcode::ActionNotSupported => 0x8033_8001,
            Subcode::AlreadyExists => 0x8033_8063,
            Subcode::CannotProcessFilter => 0x8033_801a,
            Subcode::DestinationUnreachable => 0x8033_8000,
            Subcode::EncodingLimit => 0x8033_8026,
            Subcode::FilterDialect => 0x8033_8019,
            // E_FAIL: nothing more exact is known.
            Subcode::InternalError => 0x8000_4005,
            Subcode::InvalidContext => 0x8033_801b,
            Subcode::InvalidParameter => 0x8033_803a,
            Subcode::InvalidSelectors => 0x8033_803d,
            Subcode::MissingHeader => 0x8033_8011,
            Subcode::PolymorphismMode => 0x8033_8137,
            // Too many operations of one user.
            Subcode::QuotaLimit => 0x8033_81a6,
            Subcode::SchemaValidation => 0x8033_8041,
            Subcode::TimedOut => 0x8033_8029,
            Subcode::UnsupportedFeature => 0x8033_8042,
        }
    }

    /// The Action of the fault message. Those of WS-Enumeration have WS-Management's, as Windows sends them: Microsoft's MI client
    /// reads no others.
    fn action(self) -> &'static str {
        match self.qname().as_bytes() {
            [b'a', ..] => ns::ADDRESSING_FAULT,
            _ => ns::WSMAN_FAULT_ACTION,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Sender,
    Receiver,
    MustUnderstand,
}

/// One fault; boxed, because every result of this front end may carry one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault(Box<Parts>);

#[derive(Clone, Debug, PartialEq)]
struct Parts {
    code: Code,
    subcode: Option<Subcode>,
    reason: String,
    detail: Option<&'static str>,
    windows: u32,
    cim: Option<Status>,
    chain: Vec<Instance>,
    not_understood: Option<(String, String)>,
}

impl Fault {
    fn new(code: Code, subcode: Option<Subcode>, reason: String) -> Self {
        Fault(Box::new(Parts {
            code,
            subcode,
            reason,
            detail: None,
            // Without subcode: a header that must be understood.
            windows: subcode.map_or(0x8033_8010, Subcode::windows),
            cim: None,
            chain: Vec::new(),
            not_understood: None,
        }))
    }

    /// The client's doing.
    pub(crate) fn sender(subcode: Subcode, reason: impl Into<String>) -> Self {
        Fault::new(Code::Sender, Some(subcode), reason.into())
    }

    /// The server's doing.
    pub(crate) fn receiver(subcode: Subcode, reason: impl Into<String>) -> Self {
        Fault::new(Code::Receiver, Some(subcode), reason.into())
    }

    /// A header that must be understood and is not.
    pub(crate) fn not_understood(namespace: &str, local: &str) -> Self {
        let reason = format!("The header {{{namespace}}}{local} is not understood.");
        let mut fault = Fault::new(Code::MustUnderstand, None, reason);
        fault.0.not_understood = Some((namespace.to_owned(), local.to_owned()));
        fault
    }

    /// What a person reads.
    pub(crate) fn reason(&self) -> &str {
        &self.0.reason
    }

    /// The last part of the `FaultDetail` URI.
    pub(crate) fn detail(mut self, detail: &'static str) -> Self {
        self.0.detail = Some(detail);
        self
    }

    /// The Action header of the message that carries this fault.
    pub(crate) fn action(&self) -> &'static str {
        self.0.subcode.map_or(ns::ADDRESSING_FAULT, Subcode::action)
    }

    /// `NotUnderstood` goes into the header of the answer (SOAP 1.2, 5.4.8).
    pub(crate) fn write_header(&self, w: &mut Writer) {
        if let Some((namespace, local)) = &self.0.not_understood {
            w.open("s:NotUnderstood")
                .attr("qname", &format!("q:{local}"))
                .attr("xmlns:q", namespace)
                .close();
        }
    }

    pub(crate) fn write(&self, w: &mut Writer, machine: &str) {
        w.open("s:Fault").open("s:Code");
        w.leaf(
            "s:Value",
            match self.0.code {
                Code::Sender => "s:Sender",
                Code::Receiver => "s:Receiver",
                Code::MustUnderstand => "s:MustUnderstand",
            },
        );
        if let Some(subcode) = self.0.subcode {
            w.open("s:Subcode").leaf("s:Value", subcode.qname()).close();
        }
        w.close();
        w.open("s:Reason")
            .open("s:Text")
            .attr("xml:lang", "en-US")
            .text(&self.0.reason)
            .close()
            .close();
        w.open("s:Detail");
        if let Some(detail) = self.0.detail {
            w.leaf("w:FaultDetail", &format!("{}{detail}", ns::FAULT_DETAIL));
        }
        self.write_wsman_fault(w, machine);
        if let Some(status) = self.0.cim {
            self.write_wmi_error(w, status);
        }
        let shape = instance::Shape {
            family: Family::CimSchema {
                namespace: String::new(),
            },
            precise_arrays: false,
            base: None,
        };
        for error in &self.0.chain {
            instance::write(w, error, &shape);
        }
        w.close().close();
    }

    fn write_wsman_fault(&self, w: &mut Writer, machine: &str) {
        w.open("f:WSManFault")
            .attr("xmlns:f", ns::MS_FAULT)
            .attr("Code", &self.0.windows.to_string())
            .attr("Machine", machine)
            .open("f:Message");
        if self.0.cim.is_some() {
            w.open("f:ProviderFault")
                .attr("provider", "kvmms")
                .attr("path", "kvmmsd")
                .text(&self.told())
                .close();
        } else {
            w.text(&self.0.reason);
        }
        w.close().close();
    }

    /// The reason, and what lies beneath it a line each: many clients show this text and nothing else of the detail.
    fn told(&self) -> String {
        let beneath = self.0.chain.iter().skip(1);
        let lines = beneath.filter_map(|e| e.get_str("Message").map(|m| format!("\n{m}")));
        std::iter::once(self.0.reason.clone())
            .chain(lines)
            .collect()
    }

    fn write_wmi_error(&self, w: &mut Writer, status: Status) {
        w.open("p:MSFT_WmiError")
            .attr("b:IsCIM_Error", "true")
            .attr("xmlns:b", ns::BINDING)
            .attr(
                "xmlns:p",
                "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/MSFT_WmiError",
            )
            .attr("xmlns:cim", ns::COMMON)
            .attr("xmlns:xsi", ns::XSI)
            .attr("xsi:type", "p:MSFT_WmiError_Type");
        let code = hresult(status);
        let chain = self.0.chain.first();
        let own = |name: &str| chain.and_then(|e| e.get(name).to_text());
        let fields = [
            (
                "CIMStatusCode",
                "cimUnsignedInt",
                (status as u32).to_string(),
            ),
            (
                "ErrorType",
                "cimUnsignedShort",
                own("ErrorType").unwrap_or_else(|| "0".to_owned()),
            ),
            ("Message", "cimString", self.0.reason.clone()),
            (
                "MessageID",
                "cimString",
                own("MessageID").unwrap_or_else(|| format!("HRESULT 0x{code:08x}")),
            ),
            (
                "PerceivedSeverity",
                "cimUnsignedShort",
                own("PerceivedSeverity").unwrap_or_else(|| "0".to_owned()),
            ),
            (
                "ProbableCause",
                "cimUnsignedShort",
                own("ProbableCause").unwrap_or_else(|| "0".to_owned()),
            ),
            (
                "error_Category",
                "cimUnsignedInt",
                category(status).to_owned(),
            ),
            ("error_Code", "cimUnsignedInt", code.to_string()),
            ("error_Type", "cimString", "HRESULT".to_owned()),
            (
                "error_WindowsErrorMessage",
                "cimString",
                self.0.reason.clone(),
            ),
        ];
        for (name, ty, text) in fields {
            w.open(&format!("p:{name}"))
                .attr("xsi:type", &format!("cim:{ty}"))
                .text(&text)
                .close();
        }
        w.close();
    }
}

/// The WMI error code that says the same as a CIM status.
pub(crate) const fn hresult(status: Status) -> u32 {
    match status {
        Status::Failed => 0x8004_1001,
        Status::AccessDenied => 0x8004_1003,
        Status::InvalidNamespace => 0x8004_100e,
        Status::InvalidParameter => 0x8004_1008,
        Status::InvalidClass => 0x8004_1010,
        Status::NotFound => 0x8004_1002,
        Status::NotSupported => 0x8004_100c,
        Status::AlreadyExists => 0x8004_1019,
        Status::NoSuchProperty => 0x8004_1031,
        Status::TypeMismatch => 0x8004_1005,
        Status::QueryLanguageNotSupported => 0x8004_1018,
        Status::InvalidQuery => 0x8004_1017,
        Status::MethodNotAvailable => 0x8004_1055,
        Status::MethodNotFound => 0x8004_102e,
        Status::InvalidEnumerationContext => 0x8004_1007,
        Status::OperationTimeout => 0x8004_1069,
        Status::LimitExceeded => 0x8004_106c,
    }
}

/// PowerShell's error category of a status (`System.Management.Automation.ErrorCategory`).
const fn category(status: Status) -> &'static str {
    match status {
        Status::AccessDenied => "18",
        Status::InvalidParameter | Status::InvalidQuery | Status::TypeMismatch => "5",
        Status::NotFound
        | Status::InvalidClass
        | Status::InvalidNamespace
        | Status::MethodNotFound
        | Status::NoSuchProperty => "13",
        Status::NotSupported | Status::MethodNotAvailable | Status::QueryLanguageNotSupported => {
            "11"
        }
        Status::AlreadyExists => "20",
        Status::OperationTimeout => "16",
        Status::LimitExceeded => "29",
        Status::Failed | Status::InvalidEnumerationContext => "0",
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let reason = error.message;
        let fault = match error.status {
            Status::Failed => Fault::receiver(Subcode::InternalError, reason),
            Status::AccessDenied => Fault::sender(Subcode::AccessDenied, reason),
            Status::InvalidNamespace | Status::InvalidClass | Status::NotFound => {
                Fault::sender(Subcode::DestinationUnreachable, reason).detail("InvalidResourceURI")
            }
            Status::InvalidParameter | Status::NoSuchProperty | Status::TypeMismatch => {
                Fault::sender(Subcode::InvalidParameter, reason).detail("InvalidValue")
            }
            Status::NotSupported | Status::MethodNotAvailable => {
                Fault::sender(Subcode::UnsupportedFeature, reason)
            }
            Status::MethodNotFound => Fault::sender(Subcode::ActionNotSupported, reason),
            Status::AlreadyExists => Fault::sender(Subcode::AlreadyExists, reason),
            Status::QueryLanguageNotSupported => Fault::sender(Subcode::FilterDialect, reason),
            Status::InvalidQuery => Fault::sender(Subcode::CannotProcessFilter, reason),
            Status::InvalidEnumerationContext => Fault::receiver(Subcode::InvalidContext, reason),
            Status::OperationTimeout => Fault::receiver(Subcode::TimedOut, reason),
            Status::LimitExceeded => Fault::sender(Subcode::QuotaLimit, reason),
        };
        let windows = match error.status {
            // What every client waits for is not WMI's.
            Status::OperationTimeout => Subcode::TimedOut.windows(),
            other => hresult(other),
        };
        Fault(Box::new(Parts {
            windows,
            cim: Some(error.status),
            chain: error.chain,
            ..*fault.0
        }))
    }
}
