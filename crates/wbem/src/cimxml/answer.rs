//! Answers: one content type per operation, written as the DTD wants it.

use cim::cimxml::{
    ClassShape, InstanceShape, write_class, write_instance, write_instance_name, write_path,
    write_qualifier_declaration, write_value,
};
use cim::xml::Writer;
use cim::{Class, Instance, Name, Path, QualifierDeclaration, Schema, Value};

use crate::{Error, Handler};

/// What an intrinsic operation gives.
pub(super) enum Answer {
    /// Nothing, not even an empty IRETURNVALUE.
    Void,
    Classes {
        classes: Vec<Class>,
        detail: ClassDetail,
    },
    ClassNames(Vec<Name>),
    Instance(Box<Instance>, InstanceDetail),
    /// VALUE.NAMEDINSTANCE
    NamedInstances(Vec<Instance>, InstanceDetail),
    /// VALUE.OBJECTWITHPATH
    ObjectsWithPath(Vec<Instance>, InstanceDetail),
    /// INSTANCENAME
    InstanceNames(Vec<Path>),
    /// OBJECTPATH
    ObjectPaths(Vec<Path>),
    Qualifiers(Vec<&'static QualifierDeclaration>),
    Value(Value),
    /// A piece of an open enumeration; `context` is there until its end.
    Piece {
        piece: Piece,
        context: Option<String>,
    },
}

/// The items of one pull.
pub(super) enum Piece {
    /// VALUE.INSTANCEWITHPATH
    WithPath(Vec<Instance>, InstanceDetail),
    /// INSTANCEPATH
    Paths(Vec<Path>),
    /// INSTANCE
    Bare(Vec<Instance>, InstanceDetail),
}

#[derive(Clone, Debug, Default)]
pub(super) struct ClassDetail {
    pub(super) local_only: bool,
    pub(super) qualifiers: bool,
    pub(super) class_origin: bool,
    pub(super) properties: Option<Vec<Name>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct InstanceDetail {
    pub(super) class_origin: bool,
    pub(super) properties: Option<Vec<Name>>,
}

/// What writing an answer needs to know.
pub(super) struct Place<'a> {
    pub(super) handler: &'a dyn Handler,
    pub(super) namespace: &'a str,
}

impl Place<'_> {
    /// A path with host and namespace, as INSTANCEPATH needs it.
    fn full(&self, path: &Path) -> Path {
        let mut path = path.clone();
        path.host
            .get_or_insert_with(|| self.handler.host().to_owned());
        path.namespace
            .get_or_insert_with(|| self.namespace.to_owned());
        path
    }

    fn path_of(&self, instance: &Instance) -> Path {
        match &instance.path {
            Some(path) => self.full(path),
            None => self.full(&Path::class(instance.class.clone())),
        }
    }

    fn schema(&self) -> Option<&dyn Schema> {
        self.handler.schema(self.namespace)
    }

    fn write_instance(&self, w: &mut Writer, instance: &Instance, detail: &InstanceDetail) {
        let shape = InstanceShape {
            class: self.schema().and_then(|s| s.class(instance.class.as_str())),
            class_origin: detail.class_origin,
            properties: detail.properties.as_deref(),
        };
        write_instance(w, instance, &shape);
    }

    fn write_piece(&self, w: &mut Writer, piece: &Piece) {
        match piece {
            Piece::WithPath(found, detail) => {
                for instance in found {
                    w.open("VALUE.INSTANCEWITHPATH");
                    write_path(w, &self.path_of(instance));
                    self.write_instance(w, instance, detail);
                    w.close();
                }
            }
            Piece::Paths(found) => {
                for path in found {
                    write_path(w, &self.full(path));
                }
            }
            Piece::Bare(found, detail) => {
                for instance in found {
                    self.write_instance(w, instance, detail);
                }
            }
        }
    }

    /// Writes the content of IMETHODRESPONSE.
    pub(super) fn write(&self, w: &mut Writer, answer: &Answer) {
        if matches!(answer, Answer::Void) {
            return;
        }
        w.open("IRETURNVALUE");
        match answer {
            Answer::Void => {}
            Answer::Classes { classes, detail } => {
                let shape = ClassShape {
                    local_only: detail.local_only,
                    qualifiers: detail.qualifiers,
                    class_origin: detail.class_origin,
                    properties: detail.properties.as_deref(),
                    derivation: None,
                };
                for class in classes {
                    write_class(w, class, &shape);
                }
            }
            Answer::ClassNames(names) => {
                for name in names {
                    w.open("CLASSNAME").attr("NAME", name.as_str()).close();
                }
            }
            Answer::Instance(instance, detail) => self.write_instance(w, instance, detail),
            Answer::NamedInstances(found, detail) => {
                for instance in found {
                    w.open("VALUE.NAMEDINSTANCE");
                    write_instance_name(w, &self.path_of(instance));
                    self.write_instance(w, instance, detail);
                    w.close();
                }
            }
            Answer::ObjectsWithPath(found, detail) => {
                for instance in found {
                    w.open("VALUE.OBJECTWITHPATH");
                    write_path(w, &self.path_of(instance));
                    self.write_instance(w, instance, detail);
                    w.close();
                }
            }
            Answer::InstanceNames(paths) => {
                for path in paths {
                    write_instance_name(w, path);
                }
            }
            Answer::ObjectPaths(paths) => {
                for path in paths {
                    w.open("OBJECTPATH");
                    write_path(w, &self.full(path));
                    w.close();
                }
            }
            Answer::Qualifiers(found) => {
                for qualifier in found {
                    write_qualifier_declaration(w, qualifier);
                }
            }
            Answer::Value(value) => write_value(w, value),
            Answer::Piece { piece, .. } => self.write_piece(w, piece),
        }
        w.close();
        if let Answer::Piece { context, .. } = answer {
            w.open("PARAMVALUE")
                .attr("NAME", "EndOfSequence")
                .attr("PARAMTYPE", "boolean")
                .leaf("VALUE", if context.is_some() { "FALSE" } else { "TRUE" })
                .close();
            w.open("PARAMVALUE")
                .attr("NAME", "EnumerationContext")
                .attr("PARAMTYPE", "string");
            if let Some(context) = context {
                w.leaf("VALUE", context);
            }
            w.close();
        }
    }
}

/// Writes ERROR with the chain as its instances.
pub(super) fn write_error(w: &mut Writer, error: &Error) {
    w.open("ERROR")
        .attr("CODE", &(error.status as u32).to_string())
        .attr("DESCRIPTION", &error.message);
    for cause in &error.chain {
        write_instance(w, cause, &InstanceShape::default());
    }
    w.close();
}

/// Writes a whole response message around what `body` writes.
pub(super) fn message(id: &str, body: impl FnOnce(&mut Writer)) -> String {
    let mut w = Writer::with_capacity(8192);
    w.declaration()
        .open("CIM")
        .attr("CIMVERSION", "2.0")
        .attr("DTDVERSION", "2.0")
        .open("MESSAGE")
        .attr("ID", id)
        .attr("PROTOCOLVERSION", "1.0")
        .open("SIMPLERSP");
    body(&mut w);
    w.finish()
}
