//! Sends the requests of a command to shuntd; every failure becomes a [`Problem`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use migration_proto::manager::{Cursor, Record, Request, Response};

use super::client::{Client, ConnectError, ExchangeError, Limits};
use super::exit::Exit;
use super::problem::Problem;
use crate::units;

/// How long a command that watches a session waits for a shuntd that is being restarted.
pub const ABSENCE_MAX: Duration = Duration::from_secs(30);

/// The command that starts shuntd, for the `next` of a [`Problem`].
const START_SHUNTD: &str = "systemctl start shuntd (or shuntd, in the foreground)";

/// A client of shuntd that connects at its first request.
#[derive(Debug)]
pub struct Shuntd {
    socket: PathBuf,
    limits: Limits,
    client: Option<Client>,
}

/// Why shuntd gave no answer.
#[derive(Debug)]
enum Trouble {
    Connect(ConnectError),
    Exchange(ExchangeError),
}

/// A part of the stream of events.
#[derive(Debug)]
pub struct Events {
    /// The place in the history up to which the records have everything.
    pub cursor: Cursor,
    /// Whether the records are the current state instead of events.
    pub present: bool,
    /// The records.
    pub records: Vec<Record>,
}

impl Shuntd {
    /// The shuntd behind `socket`; nothing is sent yet.
    #[must_use]
    pub const fn new(socket: PathBuf, limits: Limits) -> Self {
        Self {
            socket,
            limits,
            client: None,
        }
    }

    /// Sends a request once and gives the response.
    ///
    /// # Errors
    /// shuntd gave no answer, or answered with a failure.
    pub fn ask(&mut self, request: &Request) -> Result<Response, Problem> {
        let limit = self.limits.for_request(request);
        let response = self
            .exchange(request, limit)
            .map_err(|trouble| trouble.into_problem(request))?;
        without_failure(response)
    }

    /// Sends a request whose response is records.
    ///
    /// # Errors
    /// As [`Shuntd::ask`], and an answer of another kind.
    pub fn records(&mut self, request: &Request) -> Result<Vec<Record>, Problem> {
        records_of(self.ask(request)?)
    }

    fn exchange(&mut self, request: &Request, limit: Duration) -> Result<Response, Trouble> {
        if self.client.is_none() {
            let limits = Limits {
                greeting: self.limits.greeting.min(limit),
                ..self.limits
            };
            self.client = Some(Client::connect(&self.socket, limits).map_err(Trouble::Connect)?);
        }
        let client = self.client.as_mut().expect("connected above");
        let answer = client.request_within(request, limit);
        if answer.is_err() {
            self.client = None;
        }
        answer.map_err(Trouble::Exchange)
    }
}

/// A request that is sent repeatedly, also across a restart of shuntd.
#[derive(Debug)]
pub struct Poll {
    shuntd: Shuntd,
    request: Request,
    absence_max: Duration,
    /// Before the first answer of shuntd, its absence is a problem immediately.
    has_answered: bool,
    /// When shuntd was first found absent since its last answer. Not when it last answered: the
    /// reader of the events may have been slow.
    absent_since: Option<Instant>,
}

impl Poll {
    /// Polls the status of one session, or of all.
    #[must_use]
    pub const fn new(shuntd: Shuntd, session: Option<String>, absence_max: Duration) -> Self {
        Self {
            shuntd,
            request: Request::Status { session },
            absence_max,
            has_answered: false,
            absent_since: None,
        }
    }

    /// Polls the events of one session, or of all; the first answer is the current state.
    #[must_use]
    pub fn of_events(shuntd: Shuntd, session: Option<String>, absence_max: Duration) -> Self {
        Self {
            request: Request::Events {
                session,
                after: None,
            },
            ..Self::new(shuntd, None, absence_max)
        }
    }

    /// The current status; `None` while shuntd is absent.
    ///
    /// # Errors
    /// As [`Shuntd::ask`]; absence of shuntd only before its first answer, or when it lasts too
    /// long.
    pub fn look(&mut self, limit: Duration) -> Result<Option<Vec<Record>>, Problem> {
        self.exchange(limit)?.map(records_of).transpose()
    }

    /// The next records; `None` while shuntd is absent.
    ///
    /// # Errors
    /// As [`Poll::look`].
    pub fn events(&mut self) -> Result<Option<Events>, Problem> {
        match self.exchange(Duration::MAX)? {
            Some(Response::Events {
                next,
                cursor,
                present,
                records,
            }) => {
                if let Request::Events { after, .. } = &mut self.request {
                    *after = Some(next);
                }
                Ok(Some(Events {
                    cursor,
                    present,
                    records,
                }))
            }
            Some(_) => Err(wrong_answer()),
            None => Ok(None),
        }
    }

    /// The next lines of the history after a place in it, of the same session; none if there are no
    /// more. `None` while shuntd is absent.
    ///
    /// # Errors
    /// As [`Poll::look`]; it is not known what came after the place.
    pub fn missed(&mut self, after: &Cursor) -> Result<Option<Vec<Record>>, Problem> {
        let session = match &self.request {
            Request::Events { session, .. } => session.clone(),
            _ => None,
        };
        let request = Request::History {
            session,
            after: Some(after.clone()),
        };
        self.exchange_once(&request, Duration::MAX)?
            .map(records_of)
            .transpose()
    }

    fn exchange(&mut self, limit: Duration) -> Result<Option<Response>, Problem> {
        let request = self.request.clone();
        self.exchange_once(&request, limit)
    }

    fn exchange_once(
        &mut self,
        request: &Request,
        limit: Duration,
    ) -> Result<Option<Response>, Problem> {
        let limit = limit.min(self.shuntd.limits.for_request(request));
        match self.shuntd.exchange(request, limit) {
            Ok(response) => {
                self.has_answered = true;
                self.absent_since = None;
                without_failure(response).map(Some)
            }
            Err(trouble) if trouble.is_absence() && self.may_be_absent() => Ok(None),
            Err(trouble) => Err(trouble.into_problem(request)),
        }
    }

    fn may_be_absent(&mut self) -> bool {
        let since = *self.absent_since.get_or_insert_with(Instant::now);
        self.has_answered && since.elapsed() < self.absence_max
    }
}

impl Trouble {
    /// Whether a restart of shuntd can be the cause.
    const fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Connect(
                ConnectError::NotRunning { .. }
                    | ConnectError::Greeting {
                        source: ExchangeError::Closed,
                        ..
                    }
            ) | Self::Exchange(ExchangeError::Closed)
        )
    }

    fn into_problem(self, request: &Request) -> Problem {
        match self {
            Self::Connect(error) => connect_problem(&error),
            Self::Exchange(error) => exchange_problem(&error, request),
        }
    }
}

fn connect_problem(error: &ConnectError) -> Problem {
    let cause = error.to_string();
    let (exit, next) = match error {
        ConnectError::NotRunning { .. } => (Exit::Unreachable, START_SHUNTD),
        ConnectError::NoPermission { .. } => (
            Exit::Unreachable,
            "the same command as root, such as with sudo",
        ),
        ConnectError::Socket { .. } => (Exit::Unreachable, "give the right --socket"),
        ConnectError::WrongProtocol { .. } => (
            Exit::Unreachable,
            "systemctl restart shuntd, after shunt and shuntd were installed from one release",
        ),
        ConnectError::Greeting { source, .. } => match source {
            ExchangeError::Closed if !nix::unistd::geteuid().is_root() => (
                Exit::Unreachable,
                "the same command as root, such as with sudo",
            ),
            ExchangeError::Closed | ExchangeError::Io(_) => (Exit::Unreachable, START_SHUNTD),
            ExchangeError::NoAnswer { .. } => (Exit::Unreachable, "systemctl status shuntd"),
            ExchangeError::Malformed(_) | ExchangeError::Unsendable(_) => {
                (Exit::Failed, "give the --socket of shuntd")
            }
        },
    };
    Problem::failed("shuntd", cause, next).with_exit(exit)
}

fn exchange_problem(error: &ExchangeError, request: &Request) -> Problem {
    let next = match subject(request) {
        Subject::Session(session) => format!("shunt status {session}"),
        Subject::Volume(_) | Subject::Everything => "shunt status".to_owned(),
    };
    let unknown = if request.is_question() {
        ""
    } else {
        "; it is not known whether the command was carried out"
    };
    let object = subject(request).to_string();
    match error {
        ExchangeError::NoAnswer { limit } => Problem::failed(
            object,
            format!(
                "shuntd gave no answer within {}{unknown}",
                units::duration(*limit)
            ),
            "systemctl status shuntd, then shunt status",
        )
        .with_exit(Exit::TimeRanOut),
        ExchangeError::Unsendable(_) => {
            Problem::failed(object, error.to_string(), "give fewer arguments")
        }
        ExchangeError::Closed => Problem::failed(
            object,
            format!("shuntd closed the connection before its answer{unknown}"),
            next,
        ),
        ExchangeError::Malformed(_) | ExchangeError::Io(_) => {
            Problem::failed(object, format!("shuntd: {error}{unknown}"), next)
        }
    }
}

/// Turns a response that is a failure into a [`Problem`].
fn without_failure(response: Response) -> Result<Response, Problem> {
    match response {
        Response::Failed(failure) => Err(failure.into()),
        Response::Done { .. } | Response::Records { .. } | Response::Events { .. } => Ok(response),
    }
}

fn records_of(response: Response) -> Result<Vec<Record>, Problem> {
    match response {
        Response::Records { records } => Ok(records),
        Response::Done { .. } | Response::Events { .. } | Response::Failed(_) => {
            Err(wrong_answer())
        }
    }
}

/// The problem that the response is of a wrong kind for the request.
#[must_use]
pub fn wrong_answer() -> Problem {
    Problem::failed(
        "shuntd",
        "gave an answer of the wrong kind",
        "install shunt and shuntd from one release, then shunt status",
    )
}

enum Subject<'a> {
    Volume(&'a str),
    Session(&'a str),
    Everything,
}

impl std::fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume {name}"),
            Self::Session(name) => write!(f, "session {name}"),
            Self::Everything => f.write_str("shuntd"),
        }
    }
}

fn subject(request: &Request) -> Subject<'_> {
    match request {
        Request::Attach { volume, .. }
        | Request::Detach { volume }
        | Request::Recover { volume, .. } => Subject::Volume(volume),
        Request::Create { session, .. }
        | Request::Start { session }
        | Request::Retire { session, .. }
        | Request::TakeBack { session }
        | Request::Pause { session }
        | Request::Resume { session }
        | Request::Verify { session, .. }
        | Request::SetSession { session, .. }
        | Request::Switch { session, .. }
        | Request::Undo { session, .. }
        | Request::Split { session, .. }
        | Request::Commit { session }
        | Request::Cancel { session } => Subject::Session(session),
        Request::Samples { session } | Request::Plan { session, .. } => Subject::Session(session),
        Request::SetHost { .. } | Request::Signal { .. } | Request::FreeLocks { .. } => {
            Subject::Everything
        }
        Request::Status { session }
        | Request::History { session, .. }
        | Request::Events { session, .. } => session
            .as_deref()
            .map_or(Subject::Everything, Subject::Session),
    }
}
