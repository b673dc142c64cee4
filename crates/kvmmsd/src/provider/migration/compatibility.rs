//! What a machine needs of a host, told by one host and asked of another.

use cim::{Instance, Value};
use msvm::{class, code, params};
use vmms::Element;
use vmms::migration::compatibility;

use crate::errors;
use crate::view::{Call, CallResult, Outcome, View};

use params::virtual_system_migration_service as p;

/// Numbers of CompareOperation.
const SUPERSET: u32 = 1;
const AT_LEAST: u32 = 5;

/// Calls GetSystemCompatibilityInfo.
pub(super) async fn info(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::GetSystemCompatibilityInfoIn::read(call.parameters)?;
    let vm = super::machine(view, given.computer_system.as_ref()).await?;
    let info = compatibility::info(&view.vmms, vm).await?;
    Ok(Outcome::done().with("CompatibilityInfo", info))
}

/// Calls GetSystemCompatibilityVectors.
pub(super) async fn vectors(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::GetSystemCompatibilityVectorsIn::read(call.parameters)?;
    let vm = super::machine(view, given.computer_system.as_ref()).await?;
    let vectors = compatibility::vectors(&view.vmms, vm).await?;
    let told = vectors.iter().map(|vector| {
        let operation = if vector.amount { AT_LEAST } else { SUPERSET };
        let mut i = Instance::new(class::MSVM_COMPATIBILITY_VECTOR);
        i.set("VectorId", vector.id)
            .set("CompareOperation", operation)
            .set("CompatibilityInfo", vector.info);
        Value::from(i)
    });
    Ok(Outcome::done().with("CompatibilityVectors", Value::Array(told.collect())))
}

/// Calls CheckSystemCompatibilityInfo: 32784 with the reasons where the machine cannot run here.
pub(super) async fn check(view: &View, call: &Call<'_>) -> CallResult {
    let given = p::CheckSystemCompatibilityInfoIn::read(call.parameters)?;
    let info = msvm::required("CompatibilityInfo", given.compatibility_info)?;
    let against = compatibility::reasons_against(&view.vmms, &info).await?;
    if against.is_empty() {
        return Ok(Outcome::done());
    }
    let reasons = against.iter();
    let reasons = reasons.flat_map(|fault| errors::chain(view, fault, &Element::Host));
    let out = p::CheckSystemCompatibilityInfoOut {
        reasons: Some(reasons.collect()),
        ..p::CheckSystemCompatibilityInfoOut::code(code::NOT_COMPATIBLE)
    };
    Ok(Outcome::of(out.return_value, out.into_values()))
}
