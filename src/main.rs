//! `fasttrack`: serves by default; the other commands look after its database.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use fasttrack::App;
use fasttrack::access::Role;
use fasttrack::config::Config;
use fasttrack::db::{Location, migrate};
use fasttrack::error::Error;
use fasttrack::http::auth::account;
use fasttrack::store::user;
use fasttrack::time::Clock;
use fasttrack::{demo, graphql, http, jobs};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A GraphQL server for task management. Settings come from the environment or `.env`; see `.env.example`.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server (the default).
    Serve,
    /// Bring the database to this version's schema, or take back the newest migration.
    Migrate {
        /// Take back the newest migration instead.
        #[arg(long)]
        down: bool,
    },
    /// Print the GraphQL schema in SDL.
    Schema,
    /// Look after accounts.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Fill the database with a believable team, its projects, tasks and comments, to look at.
    Demo,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Make an account. The password is read from a prompt, or from standard input.
    Create(NewUser),
}

#[derive(Args)]
struct NewUser {
    /// Its e-mail address.
    #[arg(long)]
    email: String,
    /// Its handle: 3–50 of A–Z a–z 0–9 _ -.
    #[arg(long)]
    username: String,
    /// The name to show; the handle if left out.
    #[arg(long)]
    display_name: Option<String>,
    /// With the role ADMIN.
    #[arg(long)]
    admin: bool,
    /// Read the password from the first line of standard input instead of a prompt.
    #[arg(long)]
    password_stdin: bool,
}

/// Why the program ends early, in words for whoever runs it.
struct Failure(String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(match error {
            Error::Faults(faults) => {
                let lines = faults.into_iter().map(|fault| match fault.field {
                    Some(field) => format!("{field}: {}", fault.message),
                    None => fault.message.into_owned(),
                });
                lines.collect::<Vec<_>>().join("\n")
            }
            Error::Refused { message, .. } => message.into_owned(),
            Error::Internal(cause) => cause.to_string(),
        })
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<fasttrack::config::Invalid> for Failure {
    fn from(error: fasttrack::config::Invalid) -> Self {
        Self(error.to_string())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Without a file everything has a default; a broken one must not be half read.
    match dotenvy::dotenv() {
        Err(error) if !error.not_found() => return fail(&Failure(format!(".env: {error}"))),
        _ => {}
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run(cli.command.unwrap_or(Command::Serve))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    eprintln!("fasttrack: {}", failure.0);
    ExitCode::FAILURE
}

async fn run(command: Command) -> Result<(), Failure> {
    if let Command::Schema = command {
        print!("{}", graphql::sdl());
        return Ok(());
    }
    let config = Config::from_env()?;
    telemetry(config.log_json);
    match command {
        Command::Schema => Ok(()),
        Command::Serve => serve(config).await,
        Command::Migrate { down: true } => {
            migrate::down(&config.database).await?;
            println!("The newest migration was taken back.");
            Ok(())
        }
        Command::Migrate { down: false } => {
            let applied = migrate::up(&config.database).await?;
            println!("{applied} migrations applied.");
            Ok(())
        }
        Command::User { command: UserCommand::Create(new) } => create_user(config, new).await,
        Command::Demo => {
            let app = open(config).await?;
            let password = demo::fill(&app).await?;
            println!("Done. Log in as alice, bob, carol, dave or erin (admin) with the password {password}");
            app.db.close().await;
            Ok(())
        }
    }
}

/// Logs go to standard error, so that standard output stays for answers.
fn telemetry(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

/// The server's parts over a database that is brought up to date.
async fn open(config: Config) -> Result<Arc<App>, Failure> {
    migrate::up(&config.database).await?;
    Ok(App::open(config, Clock::system())?)
}

async fn serve(config: Config) -> Result<(), Failure> {
    let app = open(config).await?;
    let listener = TcpListener::bind(app.config.listen).await?;
    let stop = CancellationToken::new();
    let jobs = jobs::start(&app, &stop)?;
    let router = http::router(&app, graphql::schema(app.config.introspection));
    greet(&app, listener.local_addr()?).await?;
    let signalled = stop.clone();
    tokio::spawn(async move {
        terminated().await;
        signalled.cancel();
    });
    tokio::select! {
        served = http::serve(listener, router, stop.clone()) => served?,
        // Sockets that stay open do not keep the server from ending.
        () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_secs(10)).await } => {}
    }
    stop.cancel();
    jobs.wait().await;
    app.db.close().await;
    Ok(())
}

/// Tells a newcomer where to go.
async fn greet(app: &App, address: std::net::SocketAddr) -> Result<(), Failure> {
    let database = match &app.config.database {
        Location::Sqlite(path) => format!("SQLite, {}", path.display()),
        Location::Postgres(_) => "PostgreSQL".to_owned(),
    };
    println!("fasttrack {} listens on http://{address} ({database})", env!("CARGO_PKG_VERSION"));
    println!("  GraphQL   http://{address}/graphql");
    if app.config.graphiql {
        println!("  GraphiQL  http://{address}/graphiql");
    }
    if !user::has_admin(&mut app.db.conn().await?).await? {
        println!("There is no admin yet. Make one with:");
        println!("  fasttrack user create --email you@example.org --username you --admin");
    }
    Ok(())
}

/// Ctrl-C, or what a service manager sends.
async fn terminated() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    // Without a signal handler only the process's end ends it.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn create_user(config: Config, new: NewUser) -> Result<(), Failure> {
    let password = read_password(new.password_stdin)?;
    let app = open(config).await?;
    let role = if new.admin { Role::Admin } else { Role::User };
    let account = account(&app, &new.email, &new.username, &password, new.display_name.as_deref(), role).await?;
    let user = user::create(&app.db, app.clock.now(), &account).await?;
    println!("{} is there as {:?}.", user.username, user.role);
    app.db.close().await;
    Ok(())
}

/// From standard input, or twice from a prompt that does not echo.
fn read_password(stdin: bool) -> Result<String, Failure> {
    if stdin || !std::io::stdin().is_terminal() {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    let password = rpassword::prompt_password("Password: ")?;
    if rpassword::prompt_password("Once more: ")? == password {
        Ok(password)
    } else {
        Err(Failure("The two differ.".to_owned()))
    }
}
