//! What the service relies on: families, keys, defaults, method names, In and Out structs.

use std::collections::BTreeSet;

use cim::{Instance, Name, Path, Schema, Type, Value, has_qualifier};
use msvm::{
    CompletionError, ParameterError, class, code, method, params, prop, value, virtualization,
};

#[test]
fn classes_are_found_in_any_case_and_every_superclass_chain_ends_at_a_root() {
    assert!(virtualization().class("msvm_COMPUTERsystem").is_some());
    assert!(virtualization().class("Msvm_Computer").is_none());
    for namespace in msvm::namespaces() {
        assert!(!namespace.classes().is_empty(), "{}", namespace.name());
        for class in namespace.classes() {
            let ancestors = namespace.ancestors(class.name.as_str());
            let root = ancestors.last().unwrap_or(&class.name);
            let root = namespace
                .class(root.as_str())
                .expect("an ancestor is a class");
            assert!(root.superclass.is_none(), "{}", class.name);
            assert!(
                ancestors
                    .iter()
                    .all(|a| namespace.is_a(class.name.as_str(), a.as_str()))
            );
        }
    }
}

#[test]
fn the_six_job_classes_are_siblings() {
    let jobs: Vec<&str> = virtualization()
        .concrete(class::CIM_CONCRETE_JOB)
        .map(|c| c.name.as_str())
        .filter(|name| name.starts_with("Msvm_"))
        .collect();
    assert_eq!(
        jobs,
        [
            "Msvm_CollectionReferencePointExportJob",
            "Msvm_ConcreteJob",
            "Msvm_CopyFileToGuestJob",
            "Msvm_MigrationJob",
            "Msvm_StorageJob",
            "Msvm_VirtualSystemReferencePointExportJob",
        ]
    );
    assert!(!virtualization().is_a("Msvm_StorageJob", "Msvm_ConcreteJob"));
    for job in jobs {
        let job = virtualization().class(job).expect(job);
        let keys: Vec<_> = job.keys().map(|k| k.name.as_str()).collect();
        assert_eq!(keys, ["InstanceID"], "{}", job.name);
        for method in ["GetError", "GetErrorEx", "RequestStateChange"] {
            assert!(job.method(method).is_some(), "{}.{method}", job.name);
        }
    }
}

#[test]
fn every_concrete_association_has_two_references_to_classes_that_exist() {
    for namespace in msvm::namespaces() {
        for class in namespace.classes().iter().filter(|c| c.is_association()) {
            let references: Vec<_> = class
                .properties
                .iter()
                .filter(|p| p.ty == Type::Reference)
                .collect();
            assert_eq!(references.len(), 2, "{}", class.name);
            for reference in references {
                let target = reference.ref_class.as_ref().expect("a class");
                assert!(namespace.class(target.as_str()).is_some(), "{}", class.name);
                assert!(reference.is_key(), "{}.{}", class.name, reference.name);
            }
        }
    }
}

#[test]
fn a_new_instance_has_every_property_with_its_default_or_null() {
    let job = virtualization()
        .new_instance("msvm_concretejob")
        .expect("class");
    assert_eq!(job.class.as_str(), "Msvm_ConcreteJob");
    assert_eq!(job.properties.len(), 41);
    assert_eq!(job.get(prop::JOB_RUN_TIMES), &Value::Uint32(1));
    assert_eq!(job.get(prop::OPERATIONAL_STATUS), &Value::from(vec![2u16]));
    let state = job.property(prop::JOB_STATE).expect("JobState");
    assert!(state.value.is_null() && state.ty == Type::Uint16 && !state.array);
    assert!(virtualization().new_instance("Msvm_Nothing").is_none());
}

#[test]
fn completing_an_instance_types_orders_and_fills_it() {
    let mut point = Instance::new("msvm_virtualsystemreferencepoint")
        .with("consistencylevel", 2u8)
        .with(prop::INSTANCE_ID, "Microsoft:A\\B")
        .with(prop::VIRTUAL_DISK_IDENTIFIERS, "one");
    virtualization().complete(&mut point).expect("fits");
    let class = virtualization()
        .class("Msvm_VirtualSystemReferencePoint")
        .expect("class");
    assert_eq!(point.class.as_str(), "Msvm_VirtualSystemReferencePoint");
    let names = |p: &[cim::Property]| p.iter().map(|p| p.name.to_string()).collect::<Vec<_>>();
    let declared: Vec<_> = class
        .properties
        .iter()
        .map(|p| p.name.to_string())
        .collect();
    assert_eq!(names(&point.properties), declared);
    assert_eq!(point.get("ConsistencyLevel"), &Value::Uint16(2));
    assert_eq!(
        point.get("VirtualDiskIdentifiers"),
        &Value::from(vec!["one".to_owned()])
    );
    assert!(point.get("HasAssociatedData").is_null());

    let mut quiet = Instance::new("Msvm_ConcreteJob").with("HealthState", Value::Null);
    virtualization().complete(&mut quiet).expect("fits");
    assert!(
        quiet.get("HealthState").is_null(),
        "null that was set is no default"
    );
}

#[test]
fn an_instance_that_does_not_fit_is_refused_and_left_alone() {
    let stray = Instance::new("Msvm_ConcreteJob").with("Nope", 1u8);
    let mut tried = stray.clone();
    assert!(matches!(
        virtualization().complete(&mut tried),
        Err(CompletionError::Property { property, .. }) if property == "Nope"
    ));
    assert_eq!(tried, stray);
    let mut wrong = Instance::new("Msvm_ConcreteJob").with("JobState", "running");
    assert!(matches!(
        virtualization().complete(&mut wrong),
        Err(CompletionError::Type { property, .. }) if property == "JobState"
    ));
    let mut nothing = Instance::new("Msvm_Nothing");
    assert!(matches!(
        virtualization().complete(&mut nothing),
        Err(CompletionError::Class(_))
    ));
}

#[test]
fn method_names_are_read_in_any_case_and_cover_the_class() {
    use method::VirtualSystemReferencePointService as Service;
    assert_eq!(
        "exportREFERENCEpoint".parse(),
        Ok(Service::ExportReferencePoint)
    );
    let unknown = "Export".parse::<Service>().expect_err("no such method");
    assert_eq!(
        unknown.to_string(),
        "Msvm_VirtualSystemReferencePointService has no method Export"
    );
    let class = virtualization().class(Service::CLASS).expect("class");
    let names: BTreeSet<&str> = Service::ALL.iter().map(|m| m.name()).collect();
    let declared: BTreeSet<&str> = class.methods.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, declared);
}

fn call(parameters: &[(&'static str, Value)]) -> Vec<(Name, Value)> {
    parameters
        .iter()
        .map(|(n, v)| (Name::of(n), v.clone()))
        .collect()
}

#[test]
fn in_parameters_are_typed_from_what_the_protocol_carried() {
    let given = call(&[
        (
            "affectedsystem",
            Value::from("Msvm_ComputerSystem.CreationClassName=\"Msvm_ComputerSystem\",Name=\"A\""),
        ),
        ("ReferencePointType", Value::from("2")),
        (
            "ReferencePointSettings",
            Value::from(
                "<INSTANCE CLASSNAME=\"msvm_virtualsystemreferencepointsettingdata\"><PROPERTY NAME=\"ConsistencyLevel\"><VALUE>1</VALUE></PROPERTY></INSTANCE>",
            ),
        ),
        ("Job", Value::Null),
    ]);
    let read = params::virtual_system_reference_point_service::CreateReferencePointIn::read(&given)
        .expect("fits");
    assert_eq!(
        read.affected_system.map(|p| p.class.to_string()),
        Some("Msvm_ComputerSystem".into())
    );
    assert_eq!(
        read.reference_point_type.map(value::ReferencePointType),
        Some(value::ReferencePointType::RCT_BASED)
    );
    let settings = read.reference_point_settings.expect("settings");
    assert_eq!(
        settings.get("ConsistencyLevel"),
        &Value::Uint8(1),
        "typed by the schema"
    );
    assert_eq!(read.resulting_reference_point, None);
}

#[test]
fn one_instance_is_an_array_of_one_and_null_elements_are_skipped() {
    use params::virtual_system_management_service::{
        AddResourceSettingsIn, GetSummaryInformationIn,
    };
    let text = "<INSTANCE CLASSNAME=\"Msvm_ResourceAllocationSettingData\"></INSTANCE>";
    let read = AddResourceSettingsIn::read(&call(&[("ResourceSettings", Value::from(text))]))
        .expect("fits");
    assert_eq!(read.resource_settings.map(|s| s.len()), Some(1));
    let object = Value::from(vec![Instance::new("Msvm_MemorySettingData")]);
    let read = AddResourceSettingsIn::read(&call(&[("ResourceSettings", object)])).expect("fits");
    assert_eq!(read.resource_settings.map(|s| s.len()), Some(1));
    let wanted = Value::Array(vec![Value::from("4"), Value::Null, Value::Uint8(100)]);
    let read =
        GetSummaryInformationIn::read(&call(&[("RequestedInformation", wanted)])).expect("fits");
    assert_eq!(read.requested_information, Some(vec![4, 100]));
}

#[test]
fn a_call_that_does_not_fit_names_the_parameter_and_its_code() {
    use params::virtual_system_reference_point_service::ExportReferencePointIn;
    let refused = |parameter: &'static str, value: &str| {
        ExportReferencePointIn::read(&call(&[(parameter, Value::from(value))]))
            .expect_err(parameter)
    };
    let unknown = refused("Directory", "/x");
    assert!(matches!(&unknown, ParameterError::Unknown { parameter } if parameter == "Directory"));
    assert_eq!(unknown.return_code(), code::INVALID_PARAMETER);
    let reference = refused("ReferencePoint", "=");
    assert_eq!(
        reference.to_string(),
        "parameter ReferencePoint is not of type reference"
    );
    assert_eq!(reference.return_code(), code::INVALID_PARAMETER);
    let embedded = refused("ExportSettingData", "<INSTANCE");
    assert!(matches!(
        embedded,
        ParameterError::Embedded {
            parameter: "ExportSettingData",
            ..
        }
    ));
    assert_eq!(embedded.return_code(), code::INCORRECT_DATA_TYPE);
    let missing = msvm::required::<String>("ExportDirectory", None).expect_err("missing");
    assert_eq!(missing.return_code(), code::INVALID_PARAMETER);
}

#[test]
fn out_parameters_come_in_declared_order_with_instances_as_their_text() {
    use params::concrete_job::GetErrorExOut;
    use params::virtual_system_reference_point_service::CreateReferencePointOut;
    let job = Path::parse("Msvm_ConcreteJob.InstanceID=\"J\"").expect("path");
    let out = CreateReferencePointOut {
        job: Some(job.clone()),
        ..CreateReferencePointOut::code(code::JOB_STARTED)
    };
    assert_eq!(out.return_value, 4096);
    assert_eq!(
        out.into_values(),
        call(&[
            ("ResultingReferencePoint", Value::Null),
            ("Job", Value::from(job))
        ])
    );
    let errors = GetErrorExOut {
        errors: Some(vec![Instance::new("Msvm_Error").with("Message", "a < b")]),
        ..GetErrorExOut::default()
    };
    let values = errors.into_values();
    let [(_, Value::Array(items))] = values.as_slice() else {
        panic!("{values:?}")
    };
    assert_eq!(
        items.first().and_then(Value::as_str),
        Some(
            "<INSTANCE CLASSNAME=\"Msvm_Error\"><PROPERTY NAME=\"Message\" TYPE=\"string\"><VALUE>a &lt; b</VALUE></PROPERTY></INSTANCE>"
        )
    );
}

#[test]
fn open_enums_name_what_they_know_and_keep_what_they_do_not() {
    assert_eq!(value::JobState::COMPLETED.0, 7);
    assert_eq!(value::JobState::COMPLETED.label(), Some("Completed"));
    assert_eq!(value::JobState(99).label(), None);
    assert_eq!(value::JobState(99).to_string(), "99");
    assert_eq!(
        value::SnapshotType::read(&Value::from("32768")),
        Some(value::SnapshotType::RECOVERY_SNAPSHOT)
    );
    assert_eq!(value::SnapshotType::read(&Value::Uint32(70000)), None);
    assert_eq!(Value::from(value::ResourceType(31)), Value::Uint16(31));
    assert_eq!(value::ReferencePointType::LOG_BASED.0, 1);
}

#[test]
fn namespaces_are_found_in_the_spellings_clients_use() {
    for name in [
        "root/virtualization/v2",
        "ROOT\\Virtualization\\V2",
        "/root/virtualization/v2/",
    ] {
        assert!(
            msvm::namespace(name).is_some_and(|n| std::ptr::eq(n, virtualization())),
            "{name}"
        );
    }
    for name in ["interop", "root", "root/virtualization"] {
        assert!(msvm::namespace(name).is_none(), "{name}");
    }
}

#[test]
fn the_interop_namespace_has_what_a_wbem_server_shows() {
    let interop = msvm::interop();
    for name in [
        "CIM_Namespace",
        "CIM_ObjectManager",
        "CIM_RegisteredProfile",
        "Msvm_RegisteredProfile",
        "CIM_ReferencedProfile",
        "CIM_ElementConformsToProfile",
        "CIM_IndicationFilter",
        "CIM_ListenerDestinationCIMXML",
        "CIM_IndicationSubscription",
    ] {
        let class = interop.class(name).expect(name);
        assert!(class.keys().next().is_some(), "{name} has keys");
    }
    let keys: Vec<_> = interop
        .class("CIM_ObjectManager")
        .into_iter()
        .flat_map(|c| c.keys())
        .map(|k| k.name.to_string())
        .collect();
    assert_eq!(
        keys,
        [
            "SystemCreationClassName",
            "SystemName",
            "CreationClassName",
            "Name"
        ]
    );
}

#[test]
fn inherited_qualifiers_stop_where_they_are_restricted() {
    let machine = virtualization()
        .class("Msvm_ComputerSystem")
        .expect("class");
    assert!(!machine.is_abstract());
    assert!(cim::qualifier(&machine.qualifiers, "Version").is_none());
    let affected = virtualization()
        .class("Msvm_AffectedJobElement")
        .expect("class");
    assert!(has_qualifier(&affected.qualifiers, "Association") && !affected.is_abstract());
}

#[test]
fn what_pages_say_of_a_property_beside_its_values_stands_at_it() {
    let texts = |class: &str, property: &str, name: &str| {
        let class = virtualization().class(class).expect("the class");
        let declared = class.property(property).expect("the property");
        match cim::qualifier(&declared.qualifiers, name) {
            Some(cim::Literal::List(items)) => items
                .iter()
                .filter_map(cim::Literal::as_text)
                .map(str::to_owned)
                .collect(),
            Some(literal) => literal.as_text().map(str::to_owned).into_iter().collect(),
            None => Vec::new(),
        }
    };
    // A job's page repeats it; the class above declares it.
    for class in ["CIM_Job", "Msvm_ConcreteJob"] {
        let named = texts(class, "ErrorDescription", "ModelCorrespondence");
        assert_eq!(named, ["CIM_Job.ErrorCode"], "{class}");
    }
    assert_eq!(
        texts(
            "CIM_ManagedSystemElement",
            "OperationalStatus",
            "ModelCorrespondence"
        ),
        ["CIM_ManagedSystemElement.StatusDescriptions"]
    );
    assert_eq!(
        texts("Msvm_ConcreteJob", "StatusDescriptions", "ArrayType"),
        ["Indexed"]
    );
    assert!(!texts("CIM_StorageExtent", "NumberOfBlocks", "MappingStrings").is_empty());
}
