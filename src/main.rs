//! `fasttrack`: serves by default; the other commands look after its database.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use fasttrack::App;
use fasttrack::access::Role;
use fasttrack::admin::report::{Level, Report};
use fasttrack::admin::{backup, doctor, relocate, settings};
use fasttrack::config::{Config, kept_in};
use fasttrack::db::{Location, migrate};
use fasttrack::error::Error;
use fasttrack::http::auth::NewAccount;
use fasttrack::server::{self, Server};
use fasttrack::store::audit::Origin;
use fasttrack::store::password::Password;
use fasttrack::store::{account, user};
use fasttrack::time::Clock;
use fasttrack::{demo, graphql, http, jobs, telemetry};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Ask the running server whether it is ready, for health checks where there is no curl.
    Health,
    /// Bring the database to this version's schema, or take back the newest migration.
    Migrate {
        /// Take back the newest migration instead.
        #[arg(long)]
        down: bool,
    },
    /// Copy the SQLite database into a new file, also while the server runs.
    Backup {
        /// The file to make.
        file: PathBuf,
    },
    /// Carry everything over from SQLite to an empty PostgreSQL database. Stop the server first.
    Move {
        /// Where it is: `sqlite://path`. It stays as it is.
        #[arg(long, value_name = "URL", value_parser = location)]
        from: Location,
        /// Where to: `postgres://user:password@host/database`; if left out, what DATABASE_URL says, so that the
        /// password is on no command line.
        #[arg(long, value_name = "URL", value_parser = location)]
        to: Option<Location>,
    },
    /// Look at the settings.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Look for what is wrong: with the settings, the database, and what else the server needs.
    Doctor,
    /// Print the GraphQL schema in SDL.
    Schema,
    /// Print what the `/auth` routes take and answer, as an OpenAPI document in JSON.
    Openapi,
    /// Look after accounts.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Fill the database with a believable team, its projects, tasks and comments, to look at.
    Demo,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Show each setting in effect and where it comes from, and warn of what is wrong or risky.
    Check,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Make an account. The password is read from a prompt, or from standard input.
    Create(NewUser),
    /// List all accounts.
    List,
    /// Change what somebody is on this server.
    SetRole {
        /// Whose, by username.
        username: String,
        /// The new role.
        #[arg(value_parser = ["admin", "user"])]
        role: String,
    },
    /// Keep somebody from signing in, and end their sessions.
    Disable {
        /// Whom, by username.
        username: String,
    },
    /// Let somebody sign in again.
    Enable {
        /// Whom, by username.
        username: String,
    },
    /// Set a new password and end all sessions. It is read from a prompt, or from standard input.
    ResetPassword {
        /// Whose, by username.
        username: String,
        /// Read the password from the first line of standard input instead of a prompt.
        #[arg(long)]
        password_stdin: bool,
    },
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

fn location(url: &str) -> Result<Location, &'static str> {
    Location::parse(url).ok_or("must begin with sqlite:// or postgres:// and name a database")
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
            other => other.told().1.into_owned(),
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
    let runtime = match server::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run(cli.command.unwrap_or(Command::Serve))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "fasttrack: {}", failure.0);
    ExitCode::FAILURE
}

async fn run(command: Command) -> Result<(), Failure> {
    // What needs no settings, or must not fail with them.
    match command {
        Command::Schema => {
            print!("{}", graphql::sdl());
            return Ok(());
        }
        Command::Openapi => {
            println!("{}", http::docs::document());
            return Ok(());
        }
        Command::Move { from, to } => {
            let to = to.or_else(|| location(&environment("DATABASE_URL")?).ok());
            let to = to.ok_or_else(|| Failure("name where to, by --to or by DATABASE_URL".to_owned()))?;
            println!("{}", relocate::run(&from, &to).await?);
            println!("{}", relocate::carry_keys(&|name| std::env::var(name).ok(), &from, &to));
            println!("Now set DATABASE_URL to the new one, and start the server. The file stays as it is.");
            return Ok(());
        }
        Command::Config { command: ConfigCommand::Check } => {
            let checked = settings::check(&environment, &env_file());
            print!("{checked}");
            return verdict(&checked.report);
        }
        Command::Doctor => {
            let settings::Checked { config, mut report, .. } = settings::check(&environment, &env_file());
            if let Some(config) = &config {
                doctor::run(config, &environment, &Clock::system(), &mut report).await;
            }
            print!("{report}");
            return verdict(&report);
        }
        _ => {}
    }
    let config = Config::from_env()?;
    telemetry::log(&config);
    match command {
        Command::Schema | Command::Openapi | Command::Move { .. } | Command::Config { .. } | Command::Doctor => Ok(()),
        Command::Backup { file } => {
            let bytes = backup::run(&config.database, file.clone()).await?;
            println!("{} was made and checked: {bytes} bytes.", file.display());
            if let Some(keys) = kept_in(&environment, &config.database) {
                println!(
                    "Keep a copy of {} too: without the keys in it everybody has to log in again.",
                    keys.display()
                );
            }
            Ok(())
        }
        Command::Serve => serve(config).await,
        Command::Health => Ok(doctor::is_ready(config.listen).await?),
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
        Command::User { command } => look_after_users(config, command).await,
        Command::Demo => {
            let app = open(config).await?;
            let password = demo::fill(&app).await?;
            println!("Done. Log in as alice, bob, carol, dave or erin (admin) with the password {password}");
            app.db.close().await;
            Ok(())
        }
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What `.env` says, to tell it from what the environment says.
fn env_file() -> BTreeMap<String, String> {
    dotenvy::dotenv_iter().map(|pairs| pairs.flatten().collect()).unwrap_or_default()
}

fn verdict(report: &Report) -> Result<(), Failure> {
    match report.worst() {
        Level::Fail => Err(Failure("see the lines that begin with `fail`".to_owned())),
        Level::Ok | Level::Warn => Ok(()),
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
    let metrics = match app.config.metrics {
        Some(address) => Some(TcpListener::bind(address).await?),
        None => None,
    };
    let address = listener.local_addr()?;
    let measured = metrics.as_ref().map(TcpListener::local_addr).transpose()?;
    // From before anybody can see that it runs: whoever sees it may tell it to end.
    let told = terminated();
    let server = Server::start(&app, listener, metrics, jobs::start)?;
    greet(&app, address, measured).await?;
    told.await;
    tokio::select! {
        // What had to be cut off is in the log; it is no failure.
        _ = server.end() => Ok(()),
        () = terminated() => Err(Failure("told twice to end, so it did not wait".to_owned())),
    }
}

/// Tells a newcomer where to go.
async fn greet(app: &App, address: SocketAddr, metrics: Option<SocketAddr>) -> Result<(), Failure> {
    let database = match &app.config.database {
        Location::Sqlite(path) => format!("SQLite, {}", path.display()),
        Location::Postgres(_) => "PostgreSQL".to_owned(),
    };
    // Whoever reads this may have gone away.
    let mut out = std::io::stdout();
    let _ = writeln!(out, "fasttrack {} listens on http://{address} ({database})", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(out, "  GraphQL   http://{address}/graphql");
    if app.config.graphiql {
        let _ = writeln!(out, "  GraphiQL  http://{address}/graphiql");
    }
    if app.config.docs {
        let _ = writeln!(out, "  Accounts  http://{address}/docs");
    }
    if let Some(metrics) = metrics {
        let _ = writeln!(out, "  Metrics   http://{metrics}/metrics");
    }
    if !user::has_admin(&mut app.db.conn().await?).await? {
        let _ = writeln!(out, "There is no admin yet. Make one with:");
        let _ = writeln!(out, "  fasttrack user create --email you@example.org --username you --admin");
    }
    Ok(())
}

/// Ctrl-C, or what a service manager sends, from this call on, even before it is awaited.
fn terminated() -> impl Future<Output = ()> {
    #[cfg(unix)]
    let signals = {
        use tokio::signal::unix::{SignalKind, signal};
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    };
    async move {
        #[cfg(unix)]
        if let (Ok(mut terminate), Ok(mut interrupt)) = signals {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            return;
        }
        // Without a signal handler only the process's end ends it.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn look_after_users(config: Config, command: UserCommand) -> Result<(), Failure> {
    let app = open(config).await?;
    let now = app.clock.now();
    let named = async |username: &str| match user::find_by_username(&mut app.db.conn().await?, username).await? {
        Some(user) => Ok(user),
        None => Err(Failure(format!("there is no user {username}"))),
    };
    match command {
        UserCommand::Create(new) => {
            let password = read_password(new.password_stdin)?;
            let account = NewAccount {
                email: &new.email,
                username: &new.username,
                password: &password,
                display_name: new.display_name.as_deref(),
                role: if new.admin { Role::Admin } else { Role::User },
                email_verified: true,
            };
            let user = user::create(&app.db, now, &account.check(&app).await?, &Origin::default()).await?;
            println!("{} was made, as {:?}.", user.username, user.role);
        }
        UserCommand::List => {
            for user in user::all(&mut app.db.conn().await?).await? {
                let state = if user.is_active { "active" } else { "disabled" };
                println!("{}\t{}\t{:?}\t{state}\t{}", user.username, user.email, user.role, user.created_at);
            }
        }
        UserCommand::SetRole { username, role } => {
            let role = if role == "admin" { Role::Admin } else { Role::User };
            let user = named(&username).await?;
            user::update_from_shell(&app.db, now, user.id, Some(role), None).await?;
            println!("{username} is {role:?} now.");
        }
        UserCommand::Disable { username } => {
            let user = named(&username).await?;
            user::update_from_shell(&app.db, now, user.id, None, Some(false)).await?;
            println!("{username} is disabled.");
        }
        UserCommand::Enable { username } => {
            let user = named(&username).await?;
            user::update_from_shell(&app.db, now, user.id, None, Some(true)).await?;
            println!("{username} is enabled.");
        }
        UserCommand::ResetPassword { username, password_stdin } => {
            let user = named(&username).await?;
            let personal = [user.email.as_str(), user.username.as_str()];
            let password =
                Password::parse("password", &read_password(password_stdin)?, app.config.password_policy, &personal);
            let password = password.map_err(|fault| Error::Faults(vec![fault]))?;
            account::set_password(&app.db, now, &user, &app.credentials.hash(&password).await?).await?;
            println!("The password of {username} is set, their sessions are ended.");
        }
    }
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
