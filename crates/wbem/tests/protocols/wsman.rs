//! WS-Management over a real socket: envelopes in, envelopes out.

use crate::scripted::Scripted;
use crate::wire::{Connection, Got, Running, basic, post, start, start_with};
use cim::xml::{Element, Encoding, Limits};

pub(crate) const SOAP: &str = "http://www.w3.org/2003/05/soap-envelope";
const ADDRESSING: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing";
const WSMAN: &str = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd";
const ENUMERATION: &str = "http://schemas.xmlsoap.org/ws/2004/09/enumeration";
pub(crate) const TRANSFER: &str = "http://schemas.xmlsoap.org/ws/2004/09/transfer";
pub(crate) const WMI: &str = "http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2";
const CIM: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2";
const SERVICE: &str = "Msvm_VirtualSystemManagementService";

/// An envelope with other prefixes than the server's own.
pub(crate) fn envelope(action: &str, uri: &str, headers: &str, body: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><E:Envelope xmlns:E=\"{SOAP}\" xmlns:A=\"{ADDRESSING}\" \
         xmlns:W=\"{WSMAN}\" xmlns:N=\"{ENUMERATION}\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><E:Header>\
         <A:Action E:mustUnderstand=\"true\">{action}</A:Action><A:To>http://elsewhere/wsman</A:To>\
         <W:ResourceURI E:mustUnderstand=\"true\">{uri}</W:ResourceURI><A:MessageID>uuid:not-a-uuid</A:MessageID>\
         <A:ReplyTo><A:Address>x</A:Address></A:ReplyTo>{headers}</E:Header><E:Body>{body}</E:Body></E:Envelope>"
    )
}

pub(crate) async fn ask(running: &Running, text: &str) -> (Got, Element) {
    let got = post(
        running.addr,
        "/wsman",
        "Content-Type: application/soap+xml;charset=UTF-8\r\n",
        text,
    )
    .await;
    let document = cim::xml::parse(&got.body, &Limits::default()).expect("an envelope");
    let body = document.root.child(SOAP, "Body").expect("body").clone();
    (got, body)
}

async fn enumerate(running: &Running, uri: &str, inner: &str) -> (Got, Element) {
    let body = format!("<N:Enumerate>{inner}</N:Enumerate>");
    ask(
        running,
        &envelope(&format!("{ENUMERATION}/Enumerate"), uri, "", &body),
    )
    .await
}

fn wql(query: &str) -> String {
    let query = query.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<W:Filter Dialect=\"http://schemas.microsoft.com/wbem/wsman/1/WQL\">{query}</W:Filter>"
    )
}

async fn pull(running: &Running, uri: &str, context: &str, inner: &str) -> (Got, Element) {
    let body =
        format!("<N:Pull><N:EnumerationContext>{context}</N:EnumerationContext>{inner}</N:Pull>");
    ask(
        running,
        &envelope(&format!("{ENUMERATION}/Pull"), uri, "", &body),
    )
    .await
}

fn response<'a>(body: &'a Element, name: &str) -> &'a Element {
    body.child(ENUMERATION, name)
        .unwrap_or_else(|| panic!("{name} in {body:?}"))
}

fn context(response: &Element) -> Option<String> {
    let context = response
        .child(ENUMERATION, "EnumerationContext")?
        .text()
        .to_owned();
    (!context.is_empty()).then_some(context)
}

fn subcode(body: &Element) -> String {
    let steps = [
        (SOAP, "Fault"),
        (SOAP, "Code"),
        (SOAP, "Subcode"),
        (SOAP, "Value"),
    ];
    body.descend(&steps)
        .map(|e| e.text().to_owned())
        .unwrap_or_else(|| panic!("no fault: {body:?}"))
}

#[tokio::test]
async fn identify_answers_in_either_namespace_without_credentials() {
    let running = start().await;
    for namespace in [
        "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd",
        "http://schemas.dmtf.org/wbem/wsman/identify/1/wsmanidentity.xsd",
    ] {
        let text = format!(
            "<s:Envelope xmlns:s=\"{SOAP}\" xmlns:i=\"{namespace}\"><s:Header/><s:Body><i:Identify/></s:Body></s:Envelope>"
        );
        let mut connection = Connection::to(running.addr).await;
        for headers in [String::new(), basic()] {
            let got = connection.post("/wsman", &headers, text.as_bytes()).await;
            assert_eq!(got.status, 200);
            assert!(got.text().contains(&format!(
                "<wsmid:IdentifyResponse xmlns:wsmid=\"{namespace}\">"
            )));
            assert!(
                got.text()
                    .contains("<wsmid:ProductVendor>kvmms</wsmid:ProductVendor>")
            );
        }
    }
}

#[tokio::test]
async fn a_pull_without_max_elements_gives_one_item_whatever_its_resource_uri() {
    let running = start().await;
    let (_, body) = enumerate(
        &running,
        &format!("{WMI}/*"),
        &wql("SELECT * FROM Msvm_ComputerSystem "),
    )
    .await;
    let mut at = context(response(&body, "EnumerateResponse"));
    let mut names = Vec::new();
    while let Some(id) = at {
        // libvirt pulls with the class of the method it is about to call.
        let (_, body) = pull(&running, &format!("{WMI}/{SERVICE}"), &id, "").await;
        let response = response(&body, "PullResponse");
        let items = &response
            .child(ENUMERATION, "Items")
            .expect("items")
            .children;
        assert_eq!(items.len(), 1);
        let class = &items[0].local;
        assert_eq!(
            items[0].namespace.as_deref(),
            Some(format!("{WMI}/{class}").as_str())
        );
        names.push(
            items[0]
                .child(&format!("{WMI}/{class}"), "Name")
                .expect("name")
                .text()
                .to_owned(),
        );
        at = context(response);
        assert_eq!(
            at.is_none(),
            response.child(ENUMERATION, "EndOfSequence").is_some()
        );
    }
    assert_eq!(names.len(), 4);
    assert_eq!(names[3], "special");
}

#[tokio::test]
async fn an_optimized_enumeration_that_fits_ends_at_once_with_an_empty_context() {
    let running = start().await;
    let inner = "<W:OptimizeEnumeration/><W:MaxElements>100</W:MaxElements>";
    let (got, body) = enumerate(&running, &format!("{CIM}/Msvm_ComputerSystem"), inner).await;
    let response = response(&body, "EnumerateResponse");
    assert!(
        got.text().contains(
            "<n:EnumerationContext></n:EnumerationContext><w:Items><p:Msvm_ComputerSystem "
        )
    );
    assert!(got.text().contains("</w:Items><w:EndOfSequence/>"));
    let items = &response.child(WSMAN, "Items").expect("items").children;
    assert_eq!(items.len(), 4);
    assert_eq!(
        items[0].namespace.as_deref(),
        Some(format!("{CIM}/Msvm_ComputerSystem").as_str())
    );
    assert_eq!(items[3].local, "Msvm_SpecialSystem");
}

#[tokio::test]
async fn an_instance_has_every_property_as_windows_writes_it() {
    let running = start().await;
    let selectors = "<W:SelectorSet><W:Selector Name=\"creationclassname\">msvm_computersystem</W:Selector>\
        <W:Selector Name=\"Name\">\"00000000-0000-0000-0000-000000000000\"</W:Selector>\
        <W:Selector Name=\"__cimnamespace\">root\\virtualization\\v2</W:Selector></W:SelectorSet>";
    let uri = format!("{WMI}/Msvm_ComputerSystem");
    let (got, _) = ask(
        &running,
        &envelope(&format!("{TRANSFER}/Get"), &uri, selectors, ""),
    )
    .await;
    assert_eq!(got.status, 200);
    assert!(
        got.head
            .to_ascii_lowercase()
            .contains("content-type: application/soap+xml;charset=utf-8")
    );
    let text = got.text();
    assert!(text.contains("<a:RelatesTo>uuid:not-a-uuid</a:RelatesTo>"));
    let expected = concat!(
        "<s:Body><p:Msvm_ComputerSystem xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" ",
        "xmlns:p=\"http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/Msvm_ComputerSystem\" ",
        "xmlns:cim=\"http://schemas.dmtf.org/wbem/wscim/1/common\" xsi:type=\"p:Msvm_ComputerSystem_Type\">",
        "<p:Caption xsi:nil=\"true\"/>",
        "<p:CreationClassName>Msvm_ComputerSystem</p:CreationClassName>",
        "<p:ElementName>vm &lt;00000000-0000-0000-0000-000000000000&gt; &amp; \"more\"</p:ElementName>",
        "<p:Enabled>true</p:Enabled><p:EnabledState>2</p:EnabledState>",
        "<p:InstallDate><cim:Datetime>2026-11-20T12:00:00Z</cim:Datetime></p:InstallDate>",
        "<p:InstanceID xsi:nil=\"true\"/>",
        "<p:Name>00000000-0000-0000-0000-000000000000</p:Name>",
        "<p:OnTimeInMilliseconds>18446744073709551615</p:OnTimeInMilliseconds>",
        "<p:OperationalStatus>2</p:OperationalStatus><p:OperationalStatus>32768</p:OperationalStatus>",
        "<p:Settings>&lt;INSTANCE CLASSNAME=\"Msvm_VirtualSystemSettingData\"&gt;",
    );
    assert!(text.contains(expected), "{text}");
    assert!(!text.contains("Dedicated"), "a null array is left out");
}

#[tokio::test]
async fn endpoint_references_and_objects_come_as_asked_for() {
    let running = start().await;
    let query = wql("SELECT * FROM Msvm_ConcreteJob WHERE InstanceID='J1'");
    let optimized = "<W:OptimizeEnumeration/><W:MaxElements>9</W:MaxElements>";
    let mode =
        |mode: &str| format!("{optimized}<W:EnumerationMode>{mode}</W:EnumerationMode>{query}");
    let (got, _) = enumerate(&running, &format!("{WMI}/*"), &mode("EnumerateEPR")).await;
    let epr = concat!(
        "<a:EndpointReference><a:Address>http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address>",
        "<a:ReferenceParameters><w:ResourceURI>http://schemas.microsoft.com/wbem/wsman/1/wmi/root/virtualization/v2/Msvm_ConcreteJob</w:ResourceURI>",
        "<w:SelectorSet><w:Selector Name=\"__cimnamespace\">root/virtualization/v2</w:Selector>",
        "<w:Selector Name=\"InstanceID\">J1</w:Selector></w:SelectorSet></a:ReferenceParameters></a:EndpointReference>"
    );
    assert!(
        got.text().contains(&format!("<w:Items>{epr}</w:Items>")),
        "{}",
        got.text()
    );
    let (got, _) = enumerate(
        &running,
        &format!("{WMI}/*"),
        &mode("EnumerateObjectAndEPR"),
    )
    .await;
    let text = got.text();
    assert!(text.contains("<w:Items><w:Item><p:Msvm_ConcreteJob "));
    assert!(text.contains(&format!("</p:Msvm_ConcreteJob>{epr}</w:Item></w:Items>")));
    assert!(
        text.contains(
            "<p:ElapsedTime><cim:Interval>P0DT0H1M1.500000S</cim:Interval></p:ElapsedTime>"
        )
    );
    let (_, body) = enumerate(&running, &format!("{WMI}/*"), &mode("EnumerateTea")).await;
    assert_eq!(subcode(&body), "w:UnsupportedFeature");
}

#[tokio::test]
async fn totals_are_told_when_asked_for() {
    let running = start().await;
    let header = "<W:RequestTotalItemsCountEstimate/>";
    let uri = format!("{WMI}/Msvm_ComputerSystem");
    let action = format!("{ENUMERATION}/Enumerate");
    let (got, _) = ask(&running, &envelope(&action, &uri, header, "<N:Enumerate/>")).await;
    assert!(
        got.text()
            .contains("<w:TotalItemsCountEstimate>4</w:TotalItemsCountEstimate>")
    );
}

#[tokio::test]
async fn every_filter_dialect_finds_what_it_says() {
    let running = start().await;
    let optimized = "<W:OptimizeEnumeration/><W:MaxElements>9</W:MaxElements>";
    let count = |body: &Element| {
        let items = response(body, "EnumerateResponse")
            .child(WSMAN, "Items")
            .expect("items");
        items
            .children
            .iter()
            .map(|i| i.local.clone())
            .collect::<Vec<_>>()
    };
    let object = format!(
        "<b:Object><A:Address>x</A:Address><A:ReferenceParameters><W:ResourceURI>{WMI}/Msvm_ConcreteJob</W:ResourceURI>\
         <W:SelectorSet><W:Selector Name=\"InstanceID\">J1</W:Selector></W:SelectorSet></A:ReferenceParameters></b:Object>"
    );
    let association = |kind: &str, more: &str| {
        format!(
            "{optimized}<W:Filter Dialect=\"http://schemas.dmtf.org/wbem/wsman/1/cimbinding/associationFilter\" \
             xmlns:b=\"http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd\"><b:{kind}>{object}{more}</b:{kind}></W:Filter>"
        )
    };
    let (_, body) = enumerate(
        &running,
        &format!("{WMI}/*"),
        &association("AssociatedInstances", ""),
    )
    .await;
    assert_eq!(count(&body), ["Msvm_ComputerSystem"]);
    let other = "<b:ResultClassName>Msvm_ConcreteJob</b:ResultClassName>";
    let (_, body) = enumerate(
        &running,
        &format!("{WMI}/*"),
        &association("AssociatedInstances", other),
    )
    .await;
    assert!(count(&body).is_empty());
    let (got, body) = enumerate(
        &running,
        &format!("{WMI}/*"),
        &association("AssociationInstances", ""),
    )
    .await;
    assert_eq!(count(&body), ["Msvm_AffectedJobElement"]);
    assert!(got.text().contains("<p:AffectingElement><a:Address>"));
    let selector = format!(
        "{optimized}<W:Filter Dialect=\"http://schemas.dmtf.org/wbem/wsman/1/wsman/SelectorFilter\"><W:SelectorSet>\
         <W:Selector Name=\"name\">SPECIAL</W:Selector></W:SelectorSet></W:Filter>"
    );
    let (_, body) = enumerate(&running, &format!("{WMI}/Msvm_ComputerSystem"), &selector).await;
    assert_eq!(count(&body), ["Msvm_SpecialSystem"]);
    let query = wql(
        "associators of {Msvm_ConcreteJob.InstanceID='J1'} where AssocClass = Msvm_AffectedJobElement ResultClass = CIM_System",
    );
    let (_, body) = enumerate(
        &running,
        &format!("{WMI}/*"),
        &format!("{optimized}{query}"),
    )
    .await;
    assert_eq!(count(&body), ["Msvm_ComputerSystem"]);
    let unknown = format!("{optimized}<W:Filter Dialect=\"urn:tea\">x</W:Filter>");
    let (_, body) = enumerate(&running, &format!("{WMI}/*"), &unknown).await;
    assert_eq!(subcode(&body), "n:FilterDialectRequestedUnavailable");
    let (_, body) = enumerate(&running, &format!("{WMI}/*"), &wql("SELECT FROM")).await;
    assert_eq!(subcode(&body), "n:CannotProcessFilter");
    let (_, body) = enumerate(&running, &format!("{WMI}/*"), "").await;
    assert_eq!(subcode(&body), "n:CannotProcessFilter");
}

#[tokio::test]
async fn polymorphism_chooses_classes_and_properties() {
    let running = start().await;
    let inner = |mode: &str| {
        format!(
            "<W:OptimizeEnumeration/><W:MaxElements>9</W:MaxElements>\
             <b:PolymorphismMode xmlns:b=\"http://schemas.dmtf.org/wbem/wsman/1/cimbinding.xsd\">{mode}</b:PolymorphismMode>"
        )
    };
    let uri = format!("{WMI}/Msvm_ComputerSystem");
    let (got, _) = enumerate(&running, &uri, &inner("IncludeSubClassProperties")).await;
    assert!(got.text().contains("<p:Extra>more</p:Extra>"));
    let (got, _) = enumerate(&running, &uri, &inner("None")).await;
    assert!(!got.text().contains(">special<") && got.text().contains("<p:Msvm_ComputerSystem "));
    let (got, _) = enumerate(&running, &uri, &inner("ExcludeSubClassProperties")).await;
    assert!(
        got.text().contains(">special<")
            && !got.text().contains("SpecialSystem")
            && !got.text().contains("Extra")
    );
    let (_, body) = enumerate(&running, &uri, &inner("Tea")).await;
    assert_eq!(subcode(&body), "b:PolymorphismModeNotSupported");
}

#[tokio::test]
async fn a_released_context_is_gone() {
    let running = start().await;
    let uri = format!("{WMI}/Msvm_ComputerSystem");
    let (_, body) = enumerate(&running, &uri, "").await;
    let id = context(response(&body, "EnumerateResponse")).expect("context");
    let release =
        format!("<N:Release><N:EnumerationContext>{id}</N:EnumerationContext></N:Release>");
    let text = envelope(&format!("{ENUMERATION}/Release"), &uri, "", &release);
    let (got, _) = ask(&running, &text).await;
    assert_eq!(got.status, 200);
    let (got, body) = pull(&running, &uri, &id, "").await;
    assert_eq!(got.status, 500);
    assert_eq!(subcode(&body), "n:InvalidEnumerationContext");
}

#[tokio::test]
async fn a_small_envelope_limit_makes_smaller_pieces() {
    let running = start_with(Scripted::with_systems(40), Default::default()).await;
    let uri = format!("{WMI}/Msvm_ComputerSystem");
    let header = "<W:MaxEnvelopeSize>8192</W:MaxEnvelopeSize>";
    let inner =
        "<N:Enumerate><W:OptimizeEnumeration/><W:MaxElements>1000</W:MaxElements></N:Enumerate>";
    let (got, body) = ask(
        &running,
        &envelope(&format!("{ENUMERATION}/Enumerate"), &uri, header, inner),
    )
    .await;
    assert!(got.body.len() <= 8192, "{}", got.body.len());
    let items = response(&body, "EnumerateResponse")
        .child(WSMAN, "Items")
        .expect("items");
    assert!(
        (2..20).contains(&items.children.len()),
        "{}",
        items.children.len()
    );
    let tiny = header.replace("8192", "100");
    let (_, body) = ask(
        &running,
        &envelope(&format!("{ENUMERATION}/Enumerate"), &uri, &tiny, inner),
    )
    .await;
    assert_eq!(subcode(&body), "w:EncodingLimit");
}

fn input(method: &str, inner: &str) -> String {
    format!("<p:{method}_INPUT xmlns:p=\"{WMI}/{SERVICE}\">{inner}</p:{method}_INPUT>")
}

async fn invoke(running: &Running, method: &str, inner: &str) -> (Got, Element) {
    let uri = format!("{WMI}/{SERVICE}");
    let selectors = format!(
        "<W:SelectorSet><W:Selector Name=\"CreationClassName\">{SERVICE}</W:Selector></W:SelectorSet>"
    );
    let text = envelope(
        &format!("{uri}/{method}"),
        &uri,
        &selectors,
        &input(method, inner),
    );
    ask(running, &text).await
}

#[tokio::test]
async fn a_method_takes_embedded_instances_and_gives_references() {
    let running = start().await;
    let settings = "&lt;?xml version=\"1.0\"?&gt;\n&lt;INSTANCE CLASSNAME=\"Msvm_VirtualSystemSettingData\"&gt;\n  \
        &lt;PROPERTY NAME=\"ElementName\" TYPE=\"string\"&gt;\n    &lt;VALUE&gt;new&lt;/VALUE&gt;&lt;/PROPERTY&gt;&lt;/INSTANCE&gt;";
    let resource = "<p:ResourceSettings><![CDATA[<INSTANCE CLASSNAME=\"Msvm_VirtualSystemSettingData\"/>]]></p:ResourceSettings>";
    let inner = format!("<p:SystemSettings>{settings}</p:SystemSettings>{resource}{resource}");
    let (got, body) = invoke(&running, "DefineSystem", &inner).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let uri = format!("{WMI}/{SERVICE}");
    let output = body.child(&uri, "DefineSystem_OUTPUT").expect("output");
    assert_eq!(output.prefix, "p");
    let names: Vec<_> = output.children.iter().map(|c| c.local.as_str()).collect();
    assert_eq!(names, ["ResultingSystem", "Job", "ReturnValue"]);
    assert!(
        got.text()
            .contains("<w:Selector Name=\"Name\">new+2</w:Selector>"),
        "{}",
        got.text()
    );
    assert!(
        got.text().contains("<p:Job><a:Address>"),
        "no wrapper around a reference"
    );
    assert!(
        got.text()
            .contains("<w:Selector Name=\"InstanceID\">J2</w:Selector>")
    );
    assert!(got.text().contains("<p:ReturnValue>4096</p:ReturnValue>"));
}

#[tokio::test]
async fn parameters_arrive_as_the_client_meant_them() {
    let running = start().await;
    let epr = |class: &str, wrapped: bool| {
        let parts = format!(
            "<A:Address>x</A:Address><A:ReferenceParameters><W:ResourceURI>{WMI}/{class}</W:ResourceURI><W:SelectorSet>\
             <W:Selector Name=\"Name\">n</W:Selector></W:SelectorSet></A:ReferenceParameters>"
        );
        match wrapped {
            true => {
                format!("<p:Systems><A:EndpointReference>{parts}</A:EndpointReference></p:Systems>")
            }
            false => format!("<p:Systems>{parts}</p:Systems>"),
        }
    };
    let inner = format!(
        "<p:Text> a\n&lt;b&gt; </p:Text><p:Numbers>1</p:Numbers><p:Numbers>4294967295</p:Numbers>{}{}<p:Data>AQL/</p:Data>",
        epr("Msvm_ComputerSystem", false),
        epr("Msvm_ComputerSystem", true)
    );
    let (got, body) = invoke(&running, "Echo", &inner).await;
    let text = got.text();
    assert!(
        text.contains("<p:OutText> a\n&lt;b&gt; </p:OutText>"),
        "{text}"
    );
    assert!(text.contains("<p:OutNumbers>1</p:OutNumbers><p:OutNumbers>4294967295</p:OutNumbers>"));
    assert!(text.contains("<p:OutData>AQL/</p:OutData>"));
    assert!(
        text.contains("<p:OutTime><cim:Datetime>2026-01-02T02:04:05Z</cim:Datetime></p:OutTime>")
    );
    let output = body.children.first().expect("output");
    assert_eq!(
        output
            .children
            .iter()
            .filter(|c| c.local == "OutSystems")
            .count(),
        2
    );
    let (got, _) = invoke(&running, "Echo", "<p:Text xsi:nil=\"true\"/>").await;
    assert!(
        got.text().contains("<p:OutText xsi:nil=\"true\"/>"),
        "{}",
        got.text()
    );
}

#[tokio::test]
async fn errors_of_a_job_are_texts_in_an_array() {
    let running = start().await;
    let uri = format!("{CIM}/Msvm_ConcreteJob");
    let selectors = "<W:SelectorSet><W:Selector Name=\"InstanceID\">J1</W:Selector>\
        <W:Selector Name=\"__cimnamespace\">root/virtualization/v2</W:Selector></W:SelectorSet>";
    let text = envelope(&format!("{uri}/GetErrorEx"), &uri, selectors, "");
    let (got, body) = ask(&running, &text).await;
    let output = body.child(&uri, "GetErrorEx_OUTPUT").expect("output");
    let errors: Vec<_> = output.children_named(&uri, "Errors").collect();
    assert_eq!(errors.len(), 2, "{}", got.text());
    assert_eq!(
        errors[0].text,
        "<INSTANCE CLASSNAME=\"Msvm_Error\"><PROPERTY NAME=\"Message\" TYPE=\"string\"><VALUE>disk &lt;full&gt;</VALUE></PROPERTY></INSTANCE>"
    );
}

#[tokio::test]
async fn a_failure_carries_codes_for_every_kind_of_client() {
    let running = start().await;
    let (got, body) = invoke(&running, "Fail", "").await;
    assert_eq!(got.status, 500);
    assert_eq!(subcode(&body), "w:InternalError");
    let text = got.text();
    assert!(text.contains(
        "<s:Reason><s:Text xml:lang=\"en-US\">It failed, as asked for.</s:Text></s:Reason>"
    ));
    assert!(text.contains("<f:WSManFault xmlns:f=\"http://schemas.microsoft.com/wbem/wsman/1/wsmanfault\" Code=\"2147749889\" Machine=\"HV1\"><f:Message><f:ProviderFault provider=\"kvmms\""));
    assert!(
        text.contains("<p:error_Code xsi:type=\"cim:cimUnsignedInt\">2147749889</p:error_Code>")
    );
    assert!(text.contains("<p:MessageID xsi:type=\"cim:cimString\">KVMMS-0042</p:MessageID>"));
    assert!(text.contains("<p:Message>No space left on device.</p:Message>"));
    for (uri, selector, code) in [
        (format!("{WMI}/Msvm_Nothing"), "x", 0x8004_1010_u32),
        (format!("{WMI}/Msvm_ConcreteJob"), "x", 0x8004_1002),
    ] {
        let selectors = format!(
            "<W:SelectorSet><W:Selector Name=\"InstanceID\">{selector}</W:Selector></W:SelectorSet>"
        );
        let (got, body) = ask(
            &running,
            &envelope(&format!("{TRANSFER}/Get"), &uri, &selectors, ""),
        )
        .await;
        assert_eq!(subcode(&body), "a:DestinationUnreachable");
        assert!(
            got.text().contains(&format!("Code=\"{code}\"")),
            "{}",
            got.text()
        );
    }
    let (_, body) = invoke(&running, "NoSuchMethod", "").await;
    assert_eq!(subcode(&body), "a:ActionNotSupported");
}

#[tokio::test]
async fn what_is_not_served_is_a_fault_and_nothing_else() {
    let running = start().await;
    let uri = format!("{WMI}/Msvm_ConcreteJob");
    let selectors =
        "<W:SelectorSet><W:Selector Name=\"InstanceID\">J1</W:Selector></W:SelectorSet>";
    let body = format!(
        "<p:Msvm_ConcreteJob xmlns:p=\"{uri}\"><p:Caption xsi:nil=\"true\"/></p:Msvm_ConcreteJob>"
    );
    for verb in ["Put", "Create", "Delete"] {
        let (got, fault) = ask(
            &running,
            &envelope(&format!("{TRANSFER}/{verb}"), &uri, selectors, &body),
        )
        .await;
        assert_eq!(
            (got.status, subcode(&fault).as_str()),
            (500, "w:UnsupportedFeature"),
            "{verb}"
        );
    }
    let subscribe = "http://schemas.xmlsoap.org/ws/2004/08/eventing/Subscribe";
    let (_, fault) = ask(&running, &envelope(subscribe, &uri, "", "")).await;
    assert_eq!(subcode(&fault), "a:ActionNotSupported");
    let shell = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/cmd";
    let (_, fault) = ask(
        &running,
        &envelope(&format!("{TRANSFER}/Create"), shell, "", ""),
    )
    .await;
    assert_eq!(subcode(&fault), "a:DestinationUnreachable");
    let (got, _) = ask(
        &running,
        &envelope(
            "x",
            &uri,
            "<q:X xmlns:q=\"urn:q\" E:mustUnderstand=\"1\"/>",
            "",
        ),
    )
    .await;
    assert!(
        got.text()
            .contains("<s:NotUnderstood qname=\"q:X\" xmlns:q=\"urn:q\"/>")
    );
    assert!(got.text().contains("<s:Value>s:MustUnderstand</s:Value>"));
    for text in ["", "<a/>", "<!DOCTYPE a><a/>", "<E:Envelope/>"] {
        let (got, fault) = ask(&running, text).await;
        assert_eq!(
            (got.status, subcode(&fault).as_str()),
            (500, "w:SchemaValidationError"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_fragment_is_answered_alone() {
    let running = start().await;
    let uri = format!("{WMI}/Msvm_ComputerSystem");
    let header = |path: &str| {
        format!(
            "<W:SelectorSet><W:Selector Name=\"Name\">special</W:Selector></W:SelectorSet>\
             <W:FragmentTransfer E:mustUnderstand=\"true\">{path}</W:FragmentTransfer>"
        )
    };
    let get = format!("{TRANSFER}/Get");
    let (got, _) = ask(&running, &envelope(&get, &uri, &header("EnabledState"), "")).await;
    let text = got.text();
    assert!(text.contains(
        "<w:FragmentTransfer s:mustUnderstand=\"true\">EnabledState</w:FragmentTransfer>"
    ));
    assert!(
        text.contains("><p:EnabledState>3</p:EnabledState></w:XmlFragment>"),
        "{text}"
    );
    let (got, _) = ask(
        &running,
        &envelope(&get, &uri, &header("OperationalStatus[2]/text()"), ""),
    )
    .await;
    assert!(
        got.text().contains(">32768</w:XmlFragment>"),
        "{}",
        got.text()
    );
    let (_, body) = ask(&running, &envelope(&get, &uri, &header("NoSuch"), "")).await;
    assert_eq!(subcode(&body), "w:InvalidParameter");
}

#[tokio::test]
async fn classes_come_as_cim_xml_with_their_ancestors() {
    let running = start().await;
    let uri = "http://schemas.dmtf.org/wbem/cim-xml/2/cim-schema/2/*";
    let selectors = |class: &str| {
        format!(
            "<W:SelectorSet><W:Selector Name=\"__cimnamespace\">root/virtualization/v2</W:Selector>\
             <W:Selector Name=\"ClassName\">{class}</W:Selector></W:SelectorSet>"
        )
    };
    let get = format!("{TRANSFER}/Get");
    let (got, body) = ask(
        &running,
        &envelope(&get, uri, &selectors("msvm_computersystem"), ""),
    )
    .await;
    assert!(got.text().contains("<CLASS NAME=\"Msvm_ComputerSystem\" SUPERCLASS=\"CIM_System\" DERIVATION=\"CIM_System,CIM_ManagedElement\">"), "{}", got.text());
    let class = cim::cimxml::class(body.children.first().expect("class")).expect("class");
    assert!(
        class.method("RequestStateChange").is_some()
            && class.property("Name").is_some_and(|p| p.is_key())
    );
    let action = format!("{ENUMERATION}/Enumerate");
    let inner =
        "<N:Enumerate><W:OptimizeEnumeration/><W:MaxElements>100</W:MaxElements></N:Enumerate>";
    let (_, body) = ask(&running, &envelope(&action, uri, &selectors(""), inner)).await;
    let items = response(&body, "EnumerateResponse")
        .child(WSMAN, "Items")
        .expect("items");
    assert_eq!(items.children.len(), 10);
    let (got, _) = ask(&running, &envelope(&get, uri, &selectors("Nothing"), "")).await;
    assert!(
        got.text().contains("2147749904"),
        "invalid class: {}",
        got.text()
    );
}

#[tokio::test]
async fn the_answer_has_the_charset_of_the_request() {
    let running = start().await;
    let uri = format!("{WMI}/Msvm_ComputerSystem");
    let text = envelope(
        &format!("{ENUMERATION}/Enumerate"),
        &uri,
        "",
        "<N:Enumerate/>",
    )
    .replace("utf-8", "utf-16");
    for encoding in [Encoding::Utf16Le, Encoding::Utf16Be] {
        let mut connection = Connection::to(running.addr).await;
        let got = connection
            .post("/wsman", &basic(), &encoding.encode(&text))
            .await;
        assert_eq!(got.status, 200);
        assert!(
            got.head.to_ascii_lowercase().contains("charset=utf-16"),
            "{}",
            got.head
        );
        let document = cim::xml::parse(&got.body, &Limits::default()).expect("xml");
        assert_eq!(document.encoding, encoding);
    }
}

#[tokio::test]
async fn a_request_key_comes_as_option_or_header() {
    let running = start().await;
    let uri = format!("{WMI}/{SERVICE}");
    let option = "<W:OptionSet><W:Option Name=\"kvmms-request-key\">k1</W:Option></W:OptionSet>";
    ask(
        &running,
        &envelope(&format!("{uri}/Echo"), &uri, option, &input("Echo", "")),
    )
    .await;
    assert_eq!(
        running.handler.last_key.lock().expect("key").as_deref(),
        Some("k1")
    );
    let text = envelope(&format!("{uri}/Echo"), &uri, "", &input("Echo", ""));
    post(running.addr, "/wsman/", "Kvmms-Request-Key: k2\r\n", &text).await;
    assert_eq!(
        running.handler.last_key.lock().expect("key").as_deref(),
        Some("k2")
    );
}

#[tokio::test]
async fn an_operation_timeout_is_a_fault_while_the_operation_goes_on() {
    let running = start().await;
    let uri = format!("{WMI}/{SERVICE}");
    let header = "<W:OperationTimeout>PT0.050S</W:OperationTimeout>";
    let (got, body) = ask(
        &running,
        &envelope(&format!("{uri}/Wait"), &uri, header, &input("Wait", "")),
    )
    .await;
    assert_eq!(subcode(&body), "w:TimedOut");
    assert!(got.text().contains("Code=\"2150858793\""));
    running.handler.gate.add_permits(1);
    while running
        .handler
        .ended
        .load(std::sync::atomic::Ordering::SeqCst)
        == 0
    {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_settings_of_the_server_can_be_read() {
    let running = start().await;
    let uri = "http://schemas.microsoft.com/wbem/wsman/1/config";
    let (got, _) = ask(&running, &envelope(&format!("{TRANSFER}/Get"), uri, "", "")).await;
    assert!(
        got.text()
            .contains("<cfg:MaxEnvelopeSizekb>8192</cfg:MaxEnvelopeSizekb>")
    );
}
