//! A connection with what every verb needs: method calls whose return codes are understood, and jobs that are
//! followed.

use std::path::Path as FilePath;

use cim::{Instance, Name, Path, Value};
use msvm::{class, code};
use uuid::Uuid;
use wbem::Walk;
use wbem::client::{Client, ClientError, Endpoint, Invoked};

use crate::cli::Global;
use crate::connect;
use crate::error::{Error, Result};
use crate::inspect;
use crate::output::{Output, Row};
use crate::report::code_hint;
use crate::vendor;
use crate::watch;

/// The namespace of everything but `kvmms cim --namespace`.
pub(crate) const NAMESPACE: &str = "root/virtualization/v2";

/// Methods that add or take away something without a job: twice is not the same as once.
const ONCE: [&str; 7] = [
    "DefineSystem",
    "AddResourceSettings",
    "RemoveResourceSettings",
    "DefineCollection",
    "DestroyCollection",
    "AddMember",
    "RemoveMember",
];

/// A connection.
pub(crate) struct Session {
    /// The client.
    pub(crate) client: Client,
    /// Where it is connected to.
    pub(crate) endpoint: Endpoint,
    /// Where results go.
    pub(crate) output: Output,
    /// Whether jobs are followed to their end.
    pub(crate) wait: bool,
    /// Whether progress is shown.
    pub(crate) progress: bool,
}

/// What a method answered that was not refused.
pub(crate) struct Called {
    /// The method.
    pub(crate) method: String,
    /// The job it started, if it did.
    pub(crate) job: Option<Path>,
    /// Its out parameters.
    pub(crate) invoked: Invoked,
}

/// In parameters by name; null ones are left out.
pub(crate) fn parameters<const N: usize>(list: [(&'static str, Value); N]) -> Vec<(Name, Value)> {
    list.into_iter()
        .map(|(name, value)| (Name::of(name), value))
        .collect()
}

/// The path of a service. The key that every service has is enough to find it.
pub(crate) fn service(class: &'static str) -> Path {
    Path::class(class)
        .in_namespace(NAMESPACE)
        .key("CreationClassName", class)
}

/// The management service.
pub(crate) fn management() -> Path {
    service(class::MSVM_VIRTUAL_SYSTEM_MANAGEMENT_SERVICE)
}

/// The service of reference points.
pub(crate) fn points() -> Path {
    service(class::MSVM_VIRTUAL_SYSTEM_REFERENCE_POINT_SERVICE)
}

/// The service of images.
pub(crate) fn images() -> Path {
    service(class::MSVM_IMAGE_MANAGEMENT_SERVICE)
}

/// Whether the connection broke, so that nobody knows whether the request arrived.
pub(crate) fn is_lost(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Http { .. }
            | ClientError::Connect { .. }
            | ClientError::Timeout { .. }
            | ClientError::Unsealed { .. }
    )
}

impl Session {
    /// Connects as the arguments say.
    pub(crate) async fn open(global: &Global, output: Output, namespace: &str) -> Result<Self> {
        let endpoint = connect::endpoint(global)?;
        let client = connect::connect(&endpoint, global, namespace).await?;
        Ok(Session {
            client,
            endpoint,
            output,
            wait: !global.no_wait,
            progress: !global.quiet,
        })
    }

    /// Whether the server is a kvmms.
    pub(crate) fn is_kvmms(&self) -> bool {
        self.client
            .identity()
            .vendor
            .eq_ignore_ascii_case(vendor::VENDOR)
    }

    /// That a verb needs a kvmms at the other end.
    pub(crate) fn needs_kvmms(&self, what: &str) -> Result<()> {
        if self.is_kvmms() {
            return Ok(());
        }
        let identity = self.client.identity();
        Err(Error::usage(format!(
            "{what} is an extension of kvmms; {} is a {} {}",
            self.endpoint, identity.vendor, identity.version
        )))
    }

    /// The connected service, where it runs on this host.
    pub(crate) fn local_socket(&self) -> Option<&FilePath> {
        match &self.endpoint {
            Endpoint::Unix(path) => Some(path),
            _ => None,
        }
    }

    /// A path on the server's host: what is relative means the current directory where that is this host.
    pub(crate) fn host_path(&self, path: &FilePath) -> Result<String> {
        let path = match self.local_socket() {
            Some(_) => std::path::absolute(path).map_err(|e| Error::file("use", path, e))?,
            None => path.to_owned(),
        };
        path.into_os_string()
            .into_string()
            .map_err(|p| Error::usage(format!("{} is not UTF-8", p.display())))
    }

    /// Calls a method. A connection that breaks is tried once more: a kvmms starts only one job for two calls with
    /// the same key. Another server may not know such keys and is asked once, as is everybody for what has no job.
    pub(crate) async fn invoke(
        &self,
        path: &Path,
        method: &str,
        parameters: &[(Name, Value)],
    ) -> Result<Invoked> {
        let key = Uuid::new_v4().to_string();
        let once = ONCE.iter().any(|m| m.eq_ignore_ascii_case(method));
        if once {
            let called = self.client.invoke_once(path, method, parameters, &key);
            return Ok(called.await?);
        }
        let first = self.client.invoke_keyed(path, method, parameters, &key);
        match first.await {
            Err(error) if is_lost(&error) && self.is_kvmms() => {
                self.output.remark(&format!("{error}; trying once more"));
                let again = self.client.invoke_keyed(path, method, parameters, &key);
                Ok(again.await?)
            }
            other => Ok(other?),
        }
    }

    /// Calls a method and reads its return code: anything but 0 and 4096 is an error.
    pub(crate) async fn call(
        &self,
        path: &Path,
        method: &str,
        parameters: &[(Name, Value)],
    ) -> Result<Called> {
        let invoked = self.invoke(path, method, parameters).await?;
        let job = match invoked.return_value {
            Some(code::COMPLETED) => None,
            Some(code::JOB_STARTED) => {
                let job = invoked.get("Job").as_path();
                Some(job.ok_or_else(|| {
                    Error::Answer(
                        method.to_owned(),
                        "it started a job and does not name it".to_owned(),
                    )
                })?)
            }
            Some(code) => return Err(self.refused(method, code, &invoked)),
            None => {
                return Err(Error::Answer(
                    method.to_owned(),
                    "it has no return value".to_owned(),
                ));
            }
        };
        Ok(Called {
            method: method.to_owned(),
            job,
            invoked,
        })
    }

    /// A refusal, with the chain of errors where the server sends one along.
    fn refused(&self, method: &str, code: u32, invoked: &Invoked) -> Error {
        let chain = inspect::embedded(invoked.get(vendor::ERRORS));
        Error::Refused {
            method: method.to_owned(),
            code,
            hint: if chain.is_empty() {
                code_hint(code).map(str::to_owned)
            } else {
                None
            },
            chain,
        }
    }

    /// Follows the job of a call to its end, whatever was asked for; `None` where there was none.
    pub(crate) async fn finish(&self, called: &Called) -> Result<Option<Instance>> {
        match &called.job {
            Some(job) => watch::to_the_end(self, job).await.map(Some),
            None => Ok(None),
        }
    }

    /// Follows the job of a call, unless `--no-wait` was given: then the job is printed, and the answer is
    /// `Followed::Left`.
    pub(crate) async fn follow(&self, called: &Called) -> Result<Followed> {
        match &called.job {
            None => Ok(Followed::Done(None)),
            Some(job) if self.wait => {
                let ended = watch::to_the_end(self, job).await?;
                Ok(Followed::Done(Some(ended)))
            }
            Some(job) => {
                let id = watch::id(job);
                let row = Row::new()
                    .text("job", "Job", &id)
                    .text("class", "Class", job.class.as_str())
                    .text("method", "Method", &called.method);
                self.output.done(&id, &row)?;
                Ok(Followed::Left)
            }
        }
    }

    /// What a job made or affected, of a class.
    pub(crate) async fn results(&self, job: &Path, class: &'static str) -> Result<Vec<Instance>> {
        let walk = Walk {
            result_class: Some(Name::of(class)),
            ..Walk::default()
        };
        Ok(self.client.associators(job, &walk).await?)
    }

    /// Instances of a class that only newer servers have: none where it is unknown.
    pub(crate) async fn optional(&self, wql: &str) -> Result<Vec<Instance>> {
        match self.client.query(wql).await {
            Ok(found) => Ok(found),
            Err(error) if error.fault().is_some_and(|f| f.is_not_found()) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// The errors of a job: summary first; none where it has none or is gone.
    pub(crate) async fn job_errors(&self, job: &Path) -> Result<Vec<Instance>> {
        match self.client.invoke(job, "GetErrorEx", &[]).await {
            Ok(invoked) => Ok(inspect::embedded(invoked.get("Errors"))),
            Err(error) if error.fault().is_some() => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What became of a job that was to be followed.
pub(crate) enum Followed {
    /// It ended well; without a job there is no instance.
    Done(Option<Instance>),
    /// It goes on, and was printed.
    Left,
}

/// A text inside a WQL literal in single quotes.
pub(crate) fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('\'', "\\'");
    format!("'{text}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_of_queries_read_back() {
        for text in ["a", "it's", r"Microsoft:A\B\0\L", "\"x\""] {
            let wql = format!("SELECT * FROM A WHERE B = {}", quoted(text));
            let query = cim::wql::parse(&wql).expect("a query");
            let cim::wql::Query::Select(select) = query else {
                panic!("{wql}");
            };
            let (_, value) = select.key_equalities().pop().expect("a condition");
            assert_eq!(value.as_str(), Some(text));
        }
    }
}
