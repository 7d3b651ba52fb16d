//! The command line: `serve` by default, and commands for the database and its accounts.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use fasttrack::App;
use fasttrack::access::Role;
use fasttrack::admin::report::{Report, Severity};
use fasttrack::admin::{backup, doctor, relocate, settings};
use fasttrack::config::{Config, keys_file};
use fasttrack::db::{Location, migrate};
use fasttrack::error::Error;
use fasttrack::http::auth::NewAccount;
use fasttrack::server::{self, Server};
use fasttrack::store::audit::ClientInfo;
use fasttrack::store::password::Password;
use fasttrack::store::{account, user};
use fasttrack::time::Clock;
use fasttrack::{demo, graphql, http, jobs, telemetry};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A GraphQL server for task management. Settings come from the environment or `.env`; see
/// `.env.example`.
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
    /// Check whether the running server is ready. For health checks without curl.
    Health,
    /// Apply pending migrations, or revert the newest one.
    Migrate {
        /// Revert the newest migration instead.
        #[arg(long)]
        down: bool,
    },
    /// Copy the SQLite database into a new file, also while the server runs.
    Backup {
        /// The file to create; it must not exist.
        file: PathBuf,
    },
    /// Copy everything from SQLite to an empty PostgreSQL database. Stop the server first.
    Move {
        /// The source, `sqlite://path`. It is not changed.
        #[arg(long, value_name = "URL", value_parser = parse_location)]
        from: Location,
        /// The target, `postgres://user:password@host/database`. Defaults to DATABASE_URL, which
        /// keeps the password off the command line.
        #[arg(long, value_name = "URL", value_parser = parse_location)]
        to: Option<Location>,
    },
    /// Check the settings.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Check the settings, the database, and everything else that the server needs.
    Doctor,
    /// Print the GraphQL schema in SDL.
    Schema,
    /// Print the OpenAPI document of the `/auth` routes, as JSON.
    Openapi,
    /// Manage accounts.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Fill an empty database with demo data: a team with projects, tasks and comments.
    Demo,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Show each setting in effect and its source, and report invalid and risky ones.
    Check,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Create an account. The password is read from a prompt or from standard input.
    Create(CreateUserArgs),
    /// List all accounts.
    List,
    /// Change a user's role.
    SetRole {
        /// The username.
        username: String,
        /// The new role.
        #[arg(value_parser = ["admin", "user"])]
        role: String,
    },
    /// Disable an account and end its sessions.
    Disable {
        /// The username.
        username: String,
    },
    /// Enable an account again.
    Enable {
        /// The username.
        username: String,
    },
    /// Set a new password and end all sessions. It is read from a prompt or from standard input.
    ResetPassword {
        /// The username.
        username: String,
        /// Read the password from the first line of standard input instead of a prompt.
        #[arg(long)]
        password_stdin: bool,
    },
}

#[derive(Args)]
struct CreateUserArgs {
    /// The e-mail address.
    #[arg(long)]
    email: String,
    /// The username: 3–50 characters of A–Z a–z 0–9 _ -.
    #[arg(long)]
    username: String,
    /// The display name. Defaults to the username.
    #[arg(long)]
    display_name: Option<String>,
    /// Give the account the role ADMIN.
    #[arg(long)]
    admin: bool,
    /// Read the password from the first line of standard input instead of a prompt.
    #[arg(long)]
    password_stdin: bool,
}

fn parse_location(url: &str) -> Result<Location, &'static str> {
    Location::parse(url).ok_or("must start with sqlite:// or postgres:// and name a database")
}

/// The error message of a command.
struct CommandError(String);

impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        Self(match error {
            Error::UserErrors(faults) => {
                let lines = faults.into_iter().map(|fault| match fault.field {
                    Some(field) => format!("{field}: {}", fault.message),
                    None => fault.message.into_owned(),
                });
                lines.collect::<Vec<_>>().join("\n")
            }
            Error::Refused { message, .. } => message.into_owned(),
            Error::Internal(cause) => cause.to_string(),
            other => other.into_client().1.into_owned(),
        })
    }
}

impl From<std::io::Error> for CommandError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<fasttrack::config::InvalidSetting> for CommandError {
    fn from(error: fasttrack::config::InvalidSetting) -> Self {
        Self(error.to_string())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The file is optional, but a malformed one must not be read halfway.
    match dotenvy::dotenv() {
        Err(error) if !error.not_found() => {
            return report_error(&CommandError(format!(".env: {error}")));
        }
        _ => {}
    }
    let runtime = match server::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return report_error(&error.into()),
    };
    match runtime.block_on(run(cli.command.unwrap_or(Command::Serve))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report_error(&failure),
    }
}

fn report_error(failure: &CommandError) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "fasttrack: {}", failure.0);
    ExitCode::FAILURE
}

async fn run(command: Command) -> Result<(), CommandError> {
    // These need no settings, or must work with invalid ones.
    match command {
        Command::Schema => {
            print!("{}", graphql::sdl());
            return Ok(());
        }
        Command::Openapi => {
            println!("{}", http::openapi::document());
            return Ok(());
        }
        Command::Move { from, to } => {
            let to = to.or_else(|| parse_location(&env_var("DATABASE_URL")?).ok());
            let to = to.ok_or_else(|| {
                CommandError("set the target with --to or DATABASE_URL".to_owned())
            })?;
            println!("{}", relocate::run(&from, &to).await?);
            println!(
                "{}",
                relocate::copy_keys(&|name| std::env::var(name).ok(), &from, &to)
            );
            println!(
                "Set DATABASE_URL to the new database and start the server. The SQLite file is unchanged."
            );
            return Ok(());
        }
        Command::Config {
            command: ConfigCommand::Check,
        } => {
            let checked = settings::check(&env_var, &env_file());
            print!("{checked}");
            return check_report(&checked.report);
        }
        Command::Doctor => {
            let settings::SettingsCheck {
                config, mut report, ..
            } = settings::check(&env_var, &env_file());
            if let Some(config) = &config {
                doctor::run(config, &env_var, &Clock::system(), &mut report).await;
            }
            print!("{report}");
            return check_report(&report);
        }
        _ => {}
    }
    let config = Config::from_env()?;
    telemetry::init_logging(&config);
    match command {
        Command::Schema
        | Command::Openapi
        | Command::Move { .. }
        | Command::Config { .. }
        | Command::Doctor => Ok(()),
        Command::Backup { file } => {
            let bytes = backup::run(&config.database, file.clone()).await?;
            println!("Created and verified {}: {bytes} bytes.", file.display());
            if let Some(keys) = keys_file(&env_var, &config.database) {
                println!(
                    "Back up {} as well: without its keys all users have to log in again.",
                    keys.display()
                );
            }
            Ok(())
        }
        Command::Serve => serve(config).await,
        Command::Health => Ok(doctor::is_ready(config.listen).await?),
        Command::Migrate { down: true } => {
            migrate::down(&config.database).await?;
            println!("Reverted the newest migration.");
            Ok(())
        }
        Command::Migrate { down: false } => {
            let applied = migrate::up(&config.database).await?;
            println!("Applied {applied} migrations.");
            Ok(())
        }
        Command::User { command } => manage_users(config, command).await,
        Command::Demo => {
            let app = open_app(config).await?;
            let password = demo::fill(&app).await?;
            println!(
                "Done. Log in as alice, bob, carol, dave or erin (admin) with password {password}"
            );
            app.db.close().await;
            Ok(())
        }
    }
}

fn env_var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The settings of `.env`, to distinguish them from the environment's.
fn env_file() -> BTreeMap<String, String> {
    dotenvy::dotenv_iter()
        .map(|pairs| pairs.flatten().collect())
        .unwrap_or_default()
}

fn check_report(report: &Report) -> Result<(), CommandError> {
    match report.worst() {
        Severity::Fail => Err(CommandError(
            "see the lines that start with `fail`".to_owned(),
        )),
        Severity::Ok | Severity::Warn => Ok(()),
    }
}

/// Migrates the database and opens the application.
async fn open_app(config: Config) -> Result<Arc<App>, CommandError> {
    migrate::up(&config.database).await?;
    Ok(App::open(config, Clock::system())?)
}

async fn serve(config: Config) -> Result<(), CommandError> {
    let app = open_app(config).await?;
    let listener = TcpListener::bind(app.config.listen).await?;
    let metrics = match app.config.metrics {
        Some(address) => Some(TcpListener::bind(address).await?),
        None => None,
    };
    let address = listener.local_addr()?;
    let metrics_address = metrics.as_ref().map(TcpListener::local_addr).transpose()?;
    // Registered before the server becomes visible: a signal may arrive at once.
    let shutdown = shutdown_signal();
    let server = Server::start(&app, listener, metrics, jobs::start)?;
    print_addresses(&app, address, metrics_address).await?;
    shutdown.await;
    tokio::select! {
        // Aborted connections are logged and are not a failure.
        _ = server.shut_down() => Ok(()),
        () = shutdown_signal() => Err(CommandError("second signal: exiting without waiting".to_owned())),
    }
}

/// Prints the addresses of the server.
async fn print_addresses(
    app: &App,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
) -> Result<(), CommandError> {
    let database = match &app.config.database {
        Location::Sqlite(path) => format!("SQLite, {}", path.display()),
        Location::Postgres(_) => "PostgreSQL".to_owned(),
    };
    // The reader of standard output may be gone.
    let mut out = std::io::stdout();
    let _ = writeln!(
        out,
        "fasttrack {} listens on http://{address} ({database})",
        env!("CARGO_PKG_VERSION")
    );
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
        let _ = writeln!(out, "There is no admin yet. Create one with:");
        let _ = writeln!(
            out,
            "  fasttrack user create --email you@example.org --username you --admin"
        );
    }
    Ok(())
}

/// Completes on SIGTERM or SIGINT. The handlers are installed by the call, not by the first poll.
fn shutdown_signal() -> impl Future<Output = ()> {
    #[cfg(unix)]
    let signals = {
        use tokio::signal::unix::{SignalKind, signal};
        (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        )
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
        // Without a signal handler, run until the process is killed.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn manage_users(config: Config, command: UserCommand) -> Result<(), CommandError> {
    let app = open_app(config).await?;
    let now = app.clock.now();
    let named =
        async |username: &str| match user::find_by_username(&mut app.db.conn().await?, username)
            .await?
        {
            Some(user) => Ok(user),
            None => Err(CommandError(format!("no user named {username}"))),
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
            let user = user::create(
                &app.db,
                now,
                &account.check(&app).await?,
                &ClientInfo::default(),
            )
            .await?;
            println!("Created {} with role {:?}.", user.username, user.role);
        }
        UserCommand::List => {
            for user in user::all(&mut app.db.conn().await?).await? {
                let state = if user.is_active { "active" } else { "disabled" };
                println!(
                    "{}\t{}\t{:?}\t{state}\t{}",
                    user.username, user.email, user.role, user.created_at
                );
            }
        }
        UserCommand::SetRole { username, role } => {
            let role = if role == "admin" {
                Role::Admin
            } else {
                Role::User
            };
            let user = named(&username).await?;
            user::update_from_shell(&app.db, now, user.id, Some(role), None).await?;
            println!("{username} now has role {role:?}.");
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
        UserCommand::ResetPassword {
            username,
            password_stdin,
        } => {
            let user = named(&username).await?;
            let personal = [user.email.as_str(), user.username.as_str()];
            let password = Password::parse(
                "password",
                &read_password(password_stdin)?,
                app.config.password_policy,
                &personal,
            );
            let password = password.map_err(|fault| Error::UserErrors(vec![fault]))?;
            account::set_password(&app.db, now, &user, &app.credentials.hash(&password).await?)
                .await?;
            println!("Set the password of {username} and ended all sessions.");
        }
    }
    app.db.close().await;
    Ok(())
}

/// Reads a password from standard input, or twice from a prompt without echo.
fn read_password(stdin: bool) -> Result<String, CommandError> {
    if stdin || !std::io::stdin().is_terminal() {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line)?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    let password = rpassword::prompt_password("Password: ")?;
    if rpassword::prompt_password("Repeat password: ")? == password {
        Ok(password)
    } else {
        Err(CommandError("The passwords differ.".to_owned()))
    }
}
