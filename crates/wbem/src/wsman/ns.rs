//! Names fixed by the standards and by Windows.

pub(crate) const SOAP: &str = "http://www.w3.org/2003/05/soap-envelope";
pub(crate) const ADDRESSING: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing";
pub(crate) const ANONYMOUS: &str =
    "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous";
pub(crate) const ADDRESSING_FAULT: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing/fault";
pub(crate) const WSMAN: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd";
pub(crate) const WSMAN_FAULT_ACTION: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman/fault";
pub(crate) const ENUMERATION: &str = "http://schemas.xmlsoap.org/ws/2004/09/enumeration";
pub(crate) const TRANSFER: &str = "http://schemas.xmlsoap.org/ws/2004/09/transfer";
pub(crate) const EVENTING: &str = "http://schemas.xmlsoap.org/ws/2004/08/eventing";
pub(crate) const BINDING: &str = "http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd";
pub(crate) const COMMON: &str = "http://schemas.dmtf.org/wbem/wscim/1/common";
pub(crate) const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";
/// Of `WSManFault`.
pub(crate) const MS_FAULT: &str = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault";
/// Of Windows' own header blocks.
pub(crate) const MS_WSMAN: &str = "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd";
pub(crate) const MS_WINRM: &str = "http://schemas.microsoft.com/wbem/wsman/1/windows/winrm";
/// Of the server's own settings, which some clients read before they size their messages.
pub(crate) const MS_CONFIG: &str = "http://schemas.microsoft.com/wbem/wsman/1/config";
/// Both spellings of the namespace of Identify that clients use.
pub(crate) const IDENTIFY: [&str; 2] = [
    "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd",
    "http://schemas.dmtf.org/wbem/wsman/identify/1/wsmanidentity.xsd",
];

/// Resource URIs of Windows: `…/wmi/<namespace>/<class>`.
pub(crate) const WMI: &str = "http://schemas.microsoft.com/wbem/wsman/1/wmi/";
/// Resource URIs of the standard: `…/cim-schema/2/<class>`.
pub(crate) const CIM_SCHEMA: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/";
/// All classes of the standard family.
pub(crate) const CIM_ALL: &str = "http://schemas.dmtf.org/wbem/wscim/1/*";
/// Class declarations.
pub(crate) const CIM_XML: &str = "http://schemas.dmtf.org/wbem/cim-xml/2/cim-schema/2/";

pub(crate) const WQL: &str = "http://schemas.microsoft.com/wbem/wsman/1/WQL";
pub(crate) const ASSOCIATION_FILTER: &str =
    "http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter";
pub(crate) const SELECTOR_FILTER: &str =
    "http://schemas.dmtf.org/wbem/wsman/1/wsman/SelectorFilter";

pub(crate) const FAULT_DETAIL: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman/faultDetail/";
