use super::*;

fn read(text: &str) -> Element {
    parse_str(text, &Limits::default()).expect(text)
}

fn refused(text: &str) -> XmlError {
    parse_str(text, &Limits::default()).expect_err(text)
}

#[test]
fn namespaces_attributes_and_joined_text_are_read() {
    let root = read(concat!(
        "<?xml version=\"1.0\"?>\n<s:E xmlns:s='urn:s' xmlns='urn:d' a='1&amp;2' s:a='x\ny'>\n",
        "  <b>one &lt; <![CDATA[<two>]]>&#x21;<!-- c --> end</b><b xmlns=''/></s:E>"
    ));
    assert!(root.is("urn:s", "E"));
    assert_eq!(root.attr("a"), Some("1&2"));
    assert_eq!(root.attr_ns("urn:s", "a"), Some("x y"));
    let b = root.child("urn:d", "b").expect("b");
    assert_eq!(b.text, "one < <two>! end");
    assert_eq!(b.position, (4, 3));
    assert_eq!(b.namespace_of("s").as_deref(), Some("urn:s"));
    assert!(root.child("", "b").is_some());
    assert_eq!(root.text, "", "layout between elements is dropped");
    let (ns, local) = b.qname(" s:T ").expect("qname");
    assert_eq!((ns.as_deref(), local), (Some("urn:s"), "T"));
    assert!(b.qname("zz:T").is_none());
}

#[test]
fn every_encoding_gives_the_same_text() {
    let text = "<a>h\u{e9}\u{1f600}</a>";
    for encoding in [Encoding::Utf8, Encoding::Utf16Le, Encoding::Utf16Be] {
        let bytes = encoding.encode(text);
        let document = parse(&bytes, &Limits::default()).expect("document");
        assert_eq!(document.root.text, "h\u{e9}\u{1f600}");
        assert_eq!(document.encoding, encoding);
        if encoding != Encoding::Utf8 {
            let bare = parse(bytes.get(2..).expect("past the mark"), &Limits::default());
            assert_eq!(bare.expect("no mark").encoding, encoding);
        }
    }
    let declared = "<?xml version='1.0' encoding='utf-16'?><a/>";
    assert!(parse(&Encoding::Utf16Le.encode(declared), &Limits::default()).is_ok());
    assert!(parse(declared.as_bytes(), &Limits::default()).is_err());
    assert!(
        parse_str(declared, &Limits::default()).is_ok(),
        "text is text"
    );
    assert!(parse(b"\xef\xbb\xbf<a/>", &Limits::default()).is_ok());
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    for bytes in [
        &b"<a>\xff</a>"[..],
        b"\xff\xfe<\0a",
        b"\xff\xfe\x00\xd8<\0",
        b"",
        b"\0\0\0",
    ] {
        assert!(parse(bytes, &Limits::default()).is_err(), "{bytes:?}");
    }
}

#[test]
fn what_could_expand_or_is_not_well_formed_is_refused() {
    for text in [
        "<!DOCTYPE a><a/>",
        "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
        "<a><?php x?></a>",
        "<a>&nbsp;</a>",
        "<a b='&nbsp;'/>",
        "<a>&#0;</a>",
        "<a>&#xD800;</a>",
        "<a>&#+38;</a>",
        "<a b='<'/>",
        "<a>\u{1}</a>",
        "<a></b>",
        "<a>",
        "</a>",
        "<a/><b/>",
        "<a/>x",
        "x<a/>",
        "",
        "<a b='1' b='2'/>",
        "<p:a xmlns:p='u' xmlns:q='u' p:b='1' q:b='2'/>",
        "<p:a/>",
        "<a p:b=''/>",
        "<1a/>",
        "<a:b:c xmlns:a='u'/>",
        "<a b=1/>",
        "<a b/>",
        "<a xmlns:p=''/>",
        "<a/><?xml version='1.0'?>",
        "&amp;<a/>",
    ] {
        refused(text);
    }
}

#[test]
fn an_error_says_where() {
    let err = refused("<a>\n  <b>&bomb;</b></a>");
    assert_eq!((err.line, err.column), (2, 6));
    assert_eq!(
        err.to_string(),
        "the entity &bomb; is not accepted at line 2, column 6"
    );
}

#[test]
fn each_limit_holds() {
    let small = Limits {
        bytes: 200,
        depth: 3,
        attributes: 2,
        elements: 5,
        text: 10,
    };
    let ok = |text: &str| parse_str(text, &small).is_ok();
    assert!(ok("<a><b><c/></b></a>") && !ok("<a><b><c><d/></c></b></a>"));
    assert!(ok("<a x='' y=''/>") && !ok("<a x='' y='' z=''/>") && !ok("<a x='' y='' xmlns='z'/>"));
    assert!(ok("<a><b/><b/><b/><b/></a>") && !ok("<a><b/><b/><b/><b/><b/></a>"));
    assert!(ok("<a>0123456789</a>") && !ok("<a>01234<!-- -->567&#38;89</a>"));
    assert!(!ok(&format!("<a>{}</a>", " ".repeat(200))));
}

#[test]
fn what_is_written_reads_back() {
    let nasty = "<&>\"'\t\r\n]]> \u{1}\u{e9}\u{ffff}";
    let mut w = Writer::new();
    w.open("a:b")
        .attr("xmlns:a", "urn:a")
        .attr("x", nasty)
        .leaf("c d", nasty)
        .empty("e");
    let root = read(&w.finish());
    let expected = nasty.replace(['\u{1}', '\u{ffff}'], "\u{fffd}");
    assert!(root.is("urn:a", "b"));
    assert_eq!(root.attr("x"), Some(expected.as_str()));
    assert_eq!(root.child("", "c_d").expect("c_d").text, expected);
}

#[test]
fn empty_elements_are_short_unless_told() {
    let mut w = Writer::new();
    w.open("a")
        .open("b")
        .close()
        .open("c")
        .close_long()
        .leaf("d", "")
        .close();
    assert_eq!(w.finish(), "<a><b/><c></c><d></d></a>");
}
