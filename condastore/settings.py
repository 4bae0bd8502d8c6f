"""Settings: `CONDASTORE_*` variables, which operators may set, and Django's configuration.

One file: Django reads one settings module, and operators search one list of variables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
import dj_email_url
from django.core.exceptions import ImproperlyConfigured
from platformdirs import user_data_path

from accounts.providers import Providers
from accounts.provisioning import Provisioning
from condastore import __version__, env, keys
from condastore.blob_storage import blob_storage
from environments.domain.unpacking import Limits

PROJECT = Path(__file__).resolve().parent.parent


def _data_folder(name: str) -> Path:
    """Return a folder of templates or static files: an installed wheel has them in the package."""
    installed = PROJECT / "condastore" / name
    return installed if installed.is_dir() else PROJECT / name


# --- where things are -------------------------------------------------------------------------
DATA = env.folder(
    "DATA",
    user_data_path("condastore", appauthor=False),
    "The folder that holds everything: database, cache, prefixes, environments.",
    shown="the user's data folder",
).absolute()
NAMESPACE_GROUPS = env.words(
    "NAMESPACE_GROUPS",
    "",
    "Unix groups that may use the folders of private namespaces: research=researchers, "
    "team-*=cs-{namespace}; *=* for every local user.",
)
BLOBS_GROUP = env.text(
    "BLOBS_GROUP", "", "Unix group that may read the blobs folder: that of nginx, if any."
)
DEBUG = env.flag("DEBUG", False, "Show tracebacks in the browser; never in production.")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


PUBLIC_URL = env.text("PUBLIC_URL", "", "The address that users type, for links in answers.")
ALLOWED_HOSTS = env.words(
    "ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]", "Host names that the server answers to."
)
CSRF_TRUSTED_ORIGINS = env.words(
    "TRUSTED_ORIGINS", "", "Origins (https://...) whose forms are trusted, behind a proxy."
)
BEHIND_PROXY = env.flag(
    "BEHIND_PROXY", False, "Trust X-Forwarded-Proto and X-Forwarded-For of a reverse proxy."
)
TRUSTED_PROXIES = env.words(
    "TRUSTED_PROXIES",
    "",
    "Addresses or networks (10.1.0.0/16) of further proxies in front of that one: the client is "
    "the last address of X-Forwarded-For that is none of them.",
)
SECURE_COOKIES = env.flag(
    "SECURE_COOKIES",
    PUBLIC_URL.lower().startswith("https://"),
    "Send cookies over HTTPS only, and use HSTS.",
    shown="True where the public URL is https",
)
if PUBLIC_URL and _origin(PUBLIC_URL) not in CSRF_TRUSTED_ORIGINS:
    CSRF_TRUSTED_ORIGINS.append(_origin(PUBLIC_URL))


def _keys(name: str, help_: str) -> list[str]:
    """The current key, then former ones: of the setting, or of the data folder's file."""
    given = env.secret(name, help_)
    try:
        found = keys.lines(given or keys.stored_key(DATA, name.lower()))
    except OSError as error:
        raise ImproperlyConfigured(
            f"The key {error.filename} cannot be used: {error.strerror}. Run this as the account "
            f"that owns the data folder, on a writable file system, or name another folder "
            f"({env.PREFIX}DATA), or set {env.PREFIX}{name}."
        ) from error
    if not found:
        raise ImproperlyConfigured(f"{env.PREFIX}{name} is empty: it must hold a key.")
    return found


# --- keys: each has its own file in `secrets/`, and several lines where it was replaced -----------
SECRET_KEY, *SECRET_KEY_FALLBACKS = _keys(
    "SECRET_KEY", "Signs what browsers hold; created in the data folder if not given."
)
AUDIT_KEY, *AUDIT_KEY_FALLBACKS = _keys(
    "AUDIT_KEY", "Signs the audit log; created in the data folder if not given."
)
#: Installations that had no audit key of their own signed with the secret key.
AUDIT_KEY_FALLBACKS += [SECRET_KEY, *SECRET_KEY_FALLBACKS]
ENCRYPTION_KEY, *ENCRYPTION_KEY_FALLBACKS = _keys(
    "ENCRYPTION_KEY",
    "Encrypts stored credentials and webhook secrets; created in the data folder if not given.",
)
REGISTRY_KEY, *REGISTRY_KEY_FALLBACKS = _keys(
    "REGISTRY_KEY", "Signs tokens of the registry; created in the data folder if not given."
)
SIGNING_KEY = env.secret(
    "SIGNING_KEY",
    "Ed25519 key (PEM) that signs provenance; created in the data folder if not given.",
)

# --- services ---------------------------------------------------------------------------------
DATABASE_URL = env.secret(
    "DATABASE_URL", "postgresql://user:password@host/name; SQLite in the data folder if empty."
)
BROKER_URL = env.secret(
    "BROKER_URL",
    "redis://, rediss://, unix:// or amqp:// of the queue; an embedded Valkey if empty.",
)

# --- what environments may use ----------------------------------------------------------------
DEFAULT_CHANNELS = env.words(
    "DEFAULT_CHANNELS", "conda-forge", "Channels of a specification that names none."
)
CHANNEL_ALIAS = env.text(
    "CHANNEL_ALIAS", "https://conda.anaconda.org", "What a channel's bare name is joined to."
).rstrip("/")
ALLOWED_CHANNELS = env.words(
    "ALLOWED_CHANNELS", "*", "Patterns (globs) of channel URLs that environments may use."
)
ALLOWED_NETWORKS = env.words(
    "ALLOWED_NETWORKS",
    "",
    "Networks (10.1.0.0/16) and servers (conda.example.org:443) that channels, indexes, packages, "
    "base images, webhooks and pushes may be at although their addresses are not public. Servers "
    "that other settings name are allowed anyway.",
)
FILE_CHANNELS = env.words(
    "FILE_CHANNELS",
    "",
    "Folders below which everybody may use file: channels and packages; none if empty.",
)
PYPI_INDEX_URLS = env.words(
    "PYPI_INDEX_URLS", "https://pypi.org/simple", "Python indexes, the first one preferred."
)
DEFAULT_PLATFORMS = env.words(
    "DEFAULT_PLATFORMS",
    "",
    "Platforms of a specification that names none; this machine's if empty.",
)
LINK_BYTECODE = env.flag(
    "LINK_BYTECODE", True, "Compile Python files once and share the result between environments."
)

# --- artifacts (docs/how-to/build-files.md) -------------------------------------------------------
BLOBS = env.text("BLOBS", "files", "Where artifacts are kept: files, s3, gcs or azure.")
BLOBS_OPTIONS = env.secret(
    "BLOBS_OPTIONS", "Options of the object store, as JSON: those of django-storages' backend."
)
BLOBS_SIGNED_URLS = env.flag(
    "BLOBS_SIGNED_URLS", True, "Send clients to the object store, instead of passing bytes on."
)
ACCEL_REDIRECT = env.text(
    "ACCEL_REDIRECT", "", "Internal location of nginx that is the blobs folder (/_blobs/), if any."
)
ARTIFACT_TIME_LIMIT = env.seconds(
    "ARTIFACT_TIME_LIMIT", 3600, "How long making one artifact may take."
)
KEEP_PACKAGES = env.flag(
    "KEEP_PACKAGES",
    True,
    "Keep each package and wheel that a build uses unchanged, so that it can be built again when "
    "its channel is gone; costs the compressed size of each, once.",
)

# --- retention, garbage collection (docs/how-to/retention.md); 0: no such rule, or no bound -------
RETENTION_KEEP_LAST = env.number(
    "RETENTION_KEEP_LAST", 0, "Newest builds of each environment that stay; 0: all of them."
)
RETENTION_KEEP_DAYS = env.number(
    "RETENTION_KEEP_DAYS", 0, "Days that each build stays, whatever its number; 0: for ever."
)
RETENTION_DELETE_DAYS = env.number(
    "RETENTION_DELETE_DAYS", 0, "Days after which an archived build is deleted; 0: never."
)
RETENTION_LEAST_BUILDS = env.number(
    "RETENTION_LEAST_BUILDS", 1, "No namespace may keep fewer newest builds than this."
)
RETENTION_MOST_BUILDS = env.number(
    "RETENTION_MOST_BUILDS", 0, "No namespace may keep more newest builds than this; 0: no bound."
)
RETENTION_LEAST_DAYS = env.number(
    "RETENTION_LEAST_DAYS", 0, "No namespace may keep builds for fewer days than this."
)
RETENTION_MOST_DAYS = env.number(
    "RETENTION_MOST_DAYS", 0, "No namespace may keep builds for more days; 0: no bound."
)
UNDO_WINDOW = env.seconds(
    "UNDO_WINDOW", 1_209_600, "How long what was deleted can be brought back, its bytes too."
)
COLLECTION_GRACE = env.seconds(
    "COLLECTION_GRACE", 86_400, "Kept bytes that nothing needs stay so long after their last use."
)
COLLECTION_INTERVAL = env.seconds(
    "COLLECTION_INTERVAL", 3_600, "How often bytes that nothing needs are looked for."
)

# --- container images (docs/how-to/container-images.md) -------------------------------------------
BASE_IMAGE = env.text(
    "BASE_IMAGE",
    "",
    "What images are made on: registry/name:tag, or a name that was loaded; our own if empty.",
)
BASE_IMAGE_LOGIN = env.secret(
    "BASE_IMAGE_LOGIN", "user:password of the registry of that reference."
)
BASE_IMAGES_ALLOWED = env.words(
    "BASE_IMAGES_ALLOWED",
    "",
    "Bases that admins of namespaces may choose: references and loaded names; * stands for any "
    "text.",
)
PUSH_PRIVATE_NETWORKS = env.words(
    "PUSH_PRIVATE_NETWORKS",
    "",
    "Networks (10.1.0.0/16) of registries that rules may push to although they are not public.",
)
ON_DEMAND_NAMESPACE = env.text(
    "ON_DEMAND_NAMESPACE", "", "Whose images HOST/dynamic/python.3.12/numpy are; none if empty."
)
REGISTRY_WAIT = env.seconds(
    "REGISTRY_WAIT",
    50,
    "How long a pull waits for its image before it is answered with Retry-After.",
)

# --- audit --------------------------------------------------------------------------------------
AUDIT_ANCHOR = env.secret(
    "AUDIT_ANCHOR",
    "Where checkpoints of the audit log are stored outside the database: file:/path, syslog:, or "
    "an https:// URL; nowhere if empty.",
)
AUDIT_ANCHOR_INTERVAL = env.seconds(
    "AUDIT_ANCHOR_INTERVAL", 60, "How often, at most, a checkpoint of a changed log is stored."
)
AUDIT_DOWNLOADS = env.number(
    "AUDIT_DOWNLOADS", 1, "Each n-th download of a file is recorded; 1: all of them, 0: none."
)
AUDIT_REFUSALS = env.number(
    "AUDIT_REFUSALS", 30, "Refused attempts of one person or address that are recorded a minute."
)

# --- quotas of a namespace that has none of its own; 0: no limit ---------------------------------
QUOTA_BYTES = env.number(
    "QUOTA_BYTES", 0, "Bytes on the disk; what is shared counts by its share. 0: no limit."
)
QUOTA_ENVIRONMENTS = env.number("QUOTA_ENVIRONMENTS", 0, "Environments. 0: no limit.")
QUOTA_BUILDS_AT_ONCE = env.number(
    "QUOTA_BUILDS_AT_ONCE", 0, "Builds that are queued or running. 0: no limit."
)
QUOTA_BUILDS_A_DAY = env.number("QUOTA_BUILDS_A_DAY", 0, "Builds within 24 hours. 0: no limit.")

# --- who people are (docs/how-to/accounts.md) -----------------------------------------------------
LOCAL_ACCOUNTS = env.flag(
    "LOCAL_ACCOUNTS", True, "People may sign in with passwords that are kept here."
)
REQUIRE_SECOND_FACTOR = env.flag(
    "REQUIRE_SECOND_FACTOR", False, "Administrators do nothing before they set one up."
)
SUSPEND_ORPHANED_SERVICE_ACCOUNTS = env.flag(
    "SUSPEND_ORPHANED_SERVICE_ACCOUNTS",
    False,
    "Tokens of a service account whose owner has left rest until it has another.",
)
ADMIN_GROUPS = env.words(
    "ADMIN_GROUPS", "", "Groups of directories (ldap:it) whose members run the installation."
)
DIRECTORY_INTERVAL = env.seconds(
    "DIRECTORY_INTERVAL", 900, "How old what a directory said of a person may get."
)
USERS_VISIBLE = env.flag(
    "USERS_VISIBLE",
    False,
    "Tell everybody who is signed in whether a user or group name exists, when they grant to it.",
)
OIDC_PROVIDERS = env.secret("OIDC_PROVIDERS", "OpenID Connect providers, as JSON.")
SAML_PROVIDERS = env.secret("SAML_PROVIDERS", "SAML 2.0 identity providers, as JSON.")
LDAP: dict[str, Any] = {
    "name": env.text("LDAP_NAME", "ldap", "What the names of the directory's groups start with."),
    "url": env.text("LDAP_URL", "", "ldaps:// or ldap:// of the directory; none if empty."),
    "start_tls": env.flag("LDAP_START_TLS", False, "Encrypt a connection of ldap://."),
    "insecure": env.flag(
        "LDAP_INSECURE",
        False,
        "Allow ldap:// without TLS to another machine: everybody between can read the passwords.",
    ),
    "ca_file": env.text("LDAP_CA_FILE", "", "Certificates that vouch for the directory's own."),
    "bind_dn": env.text("LDAP_BIND_DN", "", "The account that looks people up."),
    "bind_password": env.secret("LDAP_BIND_PASSWORD", "Its password."),
    "user_base": env.text("LDAP_USER_BASE", "", "Below which people are."),
    "user_filter": env.text(
        "LDAP_USER_FILTER", "(uid=%(user)s)", "Finds the person of a user name."
    ),
    "group_base": env.text("LDAP_GROUP_BASE", "", "Below which groups are; not asked if empty."),
    "group_filter": env.text("LDAP_GROUP_FILTER", "(objectClass=*)", "Which of them count."),
    "group_type": env.text(
        "LDAP_GROUP_TYPE",
        "groupOfNames",
        "groupOfNames, groupOfNames-flat, groupOfUniqueNames, posixGroup or activeDirectory.",
    ),
    "id_attribute": env.text(
        "LDAP_ID_ATTRIBUTE", "entryUUID", "What a person keeps for life; objectGUID in AD."
    ),
    "username_attribute": env.text(
        "LDAP_USERNAME_ATTRIBUTE", "uid", "The user name; sAMAccountName in AD."
    ),
    "email_attribute": env.text("LDAP_EMAIL_ATTRIBUTE", "mail", "The mail address."),
    "timeout": env.seconds("LDAP_TIMEOUT", 10, "How long the directory may take.").total_seconds(),
}
LDAP_FAILURES = env.number(
    "LDAP_FAILURES",
    4,
    "Wrong passwords of one person that are tried at the directory within 30 minutes, from "
    "browsers and addresses that are not known: fewer than lock them out there. 0: no limit.",
)
SCIM_TOKEN = env.secret(
    "SCIM_TOKEN", "What a directory that provisions its people (SCIM) proves itself with."
)
SCIM_DIRECTORY = env.text(
    "SCIM_DIRECTORY", "", "Where those people sign in: the id of a provider, or LDAP_NAME."
)
SCIM_ISSUER = env.text(
    "SCIM_ISSUER", "", "The `issuer` of an OpenID Connect provider; others are known."
)
SCIM_SUBJECT = env.text(
    "SCIM_SUBJECT", "externalId", "Which attribute is the subject of sign-ins; or userName."
)

# --- limits -----------------------------------------------------------------------------------
MAX_SPECIFICATION_BYTES = env.number(
    "MAX_SPECIFICATION_BYTES", 1_048_576, "The largest specification that is read, in bytes."
)
MAX_LOCK_BYTES = env.number(
    "MAX_LOCK_BYTES", 20_971_520, "The largest lock file that is read, in bytes."
)
SOLVE_TIME_LIMIT = env.seconds("SOLVE_TIME_LIMIT", 300, "How long one solve may take.")
BUILD_TIME_LIMIT = env.seconds(
    "BUILD_TIME_LIMIT", 3600, "How long one attempt of a build may take."
)
SMOKE_TEST_TIME_LIMIT = env.seconds("SMOKE_TEST_TIME_LIMIT", 120, "How long smoke tests may take.")
SOURCE_BUILD_TIME_LIMIT = env.seconds(
    "SOURCE_BUILD_TIME_LIMIT", 900, "How long one wheel may be built from a Git commit."
)
BUILD_ATTEMPTS = env.number("BUILD_ATTEMPTS", 5, "Attempts before a build fails for good.")
BACKOFF = env.seconds("BACKOFF", 5, "Wait before the second attempt; doubles with each one.")
LEASE = env.seconds("LEASE", 30, "How long a worker that says nothing keeps its build.")
SWEEP_INTERVAL = env.seconds("SWEEP_INTERVAL", 5, "How often lost builds are looked for.")
TRASH_INTERVAL = env.seconds("TRASH_INTERVAL", 60, "How often the trash is emptied.")
RESTORES_AT_ONCE = env.number(
    "RESTORES_AT_ONCE",
    2,
    "Missing folders of READY builds that are linked again at once, in the whole installation.",
)
DISK_RESERVE = env.number(
    "DISK_RESERVE", 1_073_741_824, "Bytes that builds leave free on the disk of the data folder."
)
DOWNLOADS_PARALLEL = env.number("DOWNLOADS_PARALLEL", 8, "Packages fetched at once by a build.")
DOWNLOAD_TIMEOUT = env.seconds(
    "DOWNLOAD_TIMEOUT",
    30,
    "Silence after which a request to a channel, an index or another server is given up.",
)
DOWNLOAD_MIN_RATE = env.number(
    "DOWNLOAD_MIN_RATE",
    1024,
    "Bytes a second that a server must send, on average over DOWNLOAD_TIMEOUT; 0 for any.",
)
MAX_REPODATA_BYTES = env.number(
    "MAX_REPODATA_BYTES",
    4_294_967_296,
    "The largest file that is read of what a channel lists, in bytes, as sent and unpacked; those "
    "of conda-forge have 0.5 GB.",
)
CHANNEL_STATE_TTL = env.seconds(
    "CHANNEL_STATE_TTL", 5, "How long a channel's state is believed before it is asked again."
)
MIRROR_INTERVAL = env.seconds(
    "MIRROR_INTERVAL", 900, "How often it is seen what mirrored channels list."
)
GRAPHQL_MAX_DEPTH = env.number("GRAPHQL_MAX_DEPTH", 12, "Deepest GraphQL query that is answered.")
GRAPHQL_MAX_TOKENS = env.number("GRAPHQL_MAX_TOKENS", 4000, "Longest GraphQL query, in tokens.")
GRAPHQL_MAX_ALIASES = env.number("GRAPHQL_MAX_ALIASES", 30, "Most aliases in a GraphQL query.")
GRAPHQL_MAX_PAGE = env.number("GRAPHQL_MAX_PAGE", 100, "Most items on a page of a GraphQL list.")
#: One more row than a page holds tells whether another page follows.
STRAWBERRY_DJANGO = {
    "PAGINATION_DEFAULT_LIMIT": GRAPHQL_MAX_PAGE + 1,
    "PAGINATION_MAX_LIMIT": GRAPHQL_MAX_PAGE + 1,
}
MAX_REQUEST_BYTES = env.number("MAX_REQUEST_BYTES", 26_214_400, "The largest request body.")
MAX_UPLOAD_BYTES = env.number(
    "MAX_UPLOAD_BYTES", 4_294_967_296, "The largest package that is uploaded to a hosted channel."
)
MAX_DOWNLOAD_BYTES = env.number(
    "MAX_DOWNLOAD_BYTES",
    21_474_836_480,
    "The largest package, wheel or layer that is fetched if its size is not stated.",
)
UNPACKING = Limits(
    unpacked=env.number(
        "MAX_UNPACKED_BYTES",
        17_179_869_184,
        "What one package, wheel, upload or base image may unpack to.",
    ),
    ratio=env.number(
        "MAX_UNPACKED_RATIO",
        100,
        "Unpacked bytes for each byte of an archive, above 64 MiB, which every archive may unpack "
        "to.",
    ),
    entries=env.number(
        "MAX_UNPACKED_FILES", 500_000, "Files, links and folders that one archive may hold."
    ),
    path_bytes=env.number(
        "MAX_UNPACKED_PATH_BYTES", 1024, "The longest path in an archive, in bytes."
    ),
)
ALLOW_MD5 = env.flag(
    "ALLOW_MD5",
    False,
    "Take packages of which a channel or lock names an md5 only; files with equal ones can be "
    "made.",
)

# --- behaviour --------------------------------------------------------------------------------
REUSE_LOCKS = env.flag(
    "REUSE_LOCKS", True, "Answer the same specification and channel state with the stored lock."
)
SANDBOX = env.choice(
    "SANDBOX",
    "required",
    ("required", "off"),
    "Where code of packages runs: in bubblewrap or not at all, or `off`: with all rights of the "
    "worker, for installations where everybody who may build is trusted.",
)
WEB_PROCESSES = env.number(
    "WEB_PROCESSES", 1, "Web processes that `condastore up` starts; one uses one core."
)
WORKERS = env.number("WORKERS", 1, "Worker processes that `condastore up` starts.")
WORKER_THREADS = env.number("WORKER_THREADS", 4, "Builds that one worker runs at once.")
HOST = env.text("HOST", "127.0.0.1", "Address that `condastore up` listens on.")
PORT = env.number("PORT", 8470, "Port that `condastore up` listens on; 0 for a free one.")
ADMIN_USERNAME = env.text(
    "ADMIN_USERNAME", "admin", "The first administrator, made by `condastore up` where none is."
)
ADMIN_PASSWORD = env.secret(
    "ADMIN_PASSWORD", "Password of the first administrator; asked for, or generated, if not given."
)
WORKER_METRICS_PORT = env.number(
    "WORKER_METRICS_PORT",
    0,
    "Port of a worker's own Prometheus metrics, for everybody who reaches it; none if 0.",
)
WORKER_METRICS_HOST = env.text(
    "WORKER_METRICS_HOST",
    "127.0.0.1",
    "Address of that port. It asks for no sign-in: elsewhere, let only Prometheus reach it.",
)
METRICS_PUBLIC = env.flag("METRICS_PUBLIC", False, "Answer /metrics without a sign-in.")
LOG_LEVEL = env.text("LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR.").upper()
LOG_FORMAT = env.text("LOG_FORMAT", "console", "console, or json for log collectors.")
SESSION_AGE = env.seconds("SESSION_AGE", 1_209_600, "How long a browser stays signed in.")
PASSWORD_RESET_AGE = env.seconds(
    "PASSWORD_RESET_AGE", 3600, "How long a link that sets a new password is valid."
)
TOKEN_MAX_AGE = env.seconds("TOKEN_MAX_AGE", 31_536_000, "The longest life of an API token.")

# --- approvals and notifications ---------------------------------------------------------------
TWO_PERSON_APPROVAL = env.flag(
    "TWO_PERSON_APPROVAL", False, "Two people must agree before a package is approved."
)
SELF_APPROVAL = env.flag(
    "SELF_APPROVAL", False, "Approvers may decide on packages that they asked for themselves."
)
EMAIL_URL = env.secret(
    "EMAIL_URL", "smtp://, or submission://user:password@host:port with TLS; no mail if empty."
)
EMAIL_FROM = env.text("EMAIL_FROM", "condastore@localhost", "The sender of mails.")
WEBHOOK_PRIVATE_NETWORKS = env.words(
    "WEBHOOK_PRIVATE_NETWORKS",
    "",
    "Networks (10.1.0.0/16) that webhooks may call although they are not public.",
)
NOTIFICATION_ATTEMPTS = env.number(
    "NOTIFICATION_ATTEMPTS", 12, "Attempts before a mail, webhook or push of an image is given up."
)
NOTIFICATION_BACKOFF = env.seconds(
    "NOTIFICATION_BACKOFF", 10, "Wait before the second attempt; doubles with each, up to 6 hours."
)

# --- Django -----------------------------------------------------------------------------------
VERSION = __version__
SIGN_IN_PROVIDERS = Providers.read(
    openid=OIDC_PROVIDERS, saml=SAML_PROVIDERS, taken=[LDAP["name"]] if LDAP["url"] else []
)
SCIM = Provisioning.read(
    token=SCIM_TOKEN,
    directory=SCIM_DIRECTORY,
    issuer=SCIM_ISSUER,
    subject=SCIM_SUBJECT,
    providers=SIGN_IN_PROVIDERS,
    ldap=LDAP,
)
#: Directories that are asked again between sign-ins: what makes each.
DIRECTORIES: list[tuple[str, dict[str, Any]]] = [
    ("accounts.openid_directory.Directory", {"name": one.id})
    for one in SIGN_IN_PROVIDERS.openid
    if one.sync
]
if LDAP["url"]:
    DIRECTORIES.append(("accounts.ldap_directory.Directory", {}))
INSTALLED_APPS = [
    "allauth",
    "allauth.account",
    "allauth.socialaccount",
    "allauth.mfa",
    *SIGN_IN_PROVIDERS.apps,
    "accounts",
    "environments",
    "condastore.admin_site.AdminConfig",  # condastore.urls finds the rooms: web only
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.humanize",  # in allauth's pages of security keys
    "django.contrib.staticfiles",
    "guardian",
]
MIDDLEWARE = [
    "condastore.http.middleware.RequestContext",
    "condastore.health.Probes",  # before anything that reads the Host header
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "accounts.authentication.ActorMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "condastore.http.middleware.StoreErrors",
]
ROOT_URLCONF = "condastore.urls"
ASGI_APPLICATION = "condastore.asgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [_data_folder("templates")],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "environments.admin.context_processors.console",
            ],
            "libraries": {"console": "environments.console.template_tags"},
        },
    },
    {
        "NAME": "mail",
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [_data_folder("templates") / "mail"],
        "OPTIONS": {"autoescape": False},  # plain text; no page is found here
    },
]

SQLITE_OPTIONS = {
    # A writer takes its lock when the transaction starts: two that read first and write later
    # would else end in "database is locked" at once, whatever the timeout.
    "transaction_mode": "IMMEDIATE",
    "timeout": 60,
    # No mmap_size: SQLite before 3.51.3 has a race between checkpoints of several processes (its
    # "WAL-reset bug"), which memory maps are reported to make worse. Writers that queue (the engine
    # below) never meet it; other programs that write to the file may.
    "init_command": (
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;"
        "PRAGMA journal_size_limit=67108864; PRAGMA cache_size=-20000;"
    ),
}
if DATABASE_URL:
    DATABASES = {"default": dj_database_url.parse(DATABASE_URL, conn_health_checks=True)}
    if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
        DATABASES["default"] |= {
            "ENGINE": "condastore.databases.sqlite3",
            "OPTIONS": SQLITE_OPTIONS | DATABASES["default"].get("OPTIONS", {}),
        }
else:
    DATABASES = {
        "default": {
            "ENGINE": "condastore.databases.sqlite3",
            "NAME": str(DATA / "db.sqlite3"),
            "OPTIONS": SQLITE_OPTIONS,
        }
    }
_mail = dj_email_url.parse(EMAIL_URL or "dummy://")
EMAIL_BACKEND = _mail.get("EMAIL_BACKEND", "")  # checks.py says so where the scheme is unknown
EMAIL_HOST, EMAIL_PORT = _mail["EMAIL_HOST"], _mail["EMAIL_PORT"]
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _mail["EMAIL_HOST_USER"], _mail["EMAIL_HOST_PASSWORD"]
EMAIL_USE_SSL, EMAIL_USE_TLS = _mail["EMAIL_USE_SSL"], _mail["EMAIL_USE_TLS"]
EMAIL_FILE_PATH = _mail["EMAIL_FILE_PATH"]
EMAIL_TIMEOUT = 30  # seconds
DEFAULT_FROM_EMAIL = SERVER_EMAIL = EMAIL_FROM
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "accounts.User"
# Passwords of our own first: what a directory cannot answer keeps nobody else out.
AUTHENTICATION_BACKENDS = ["accounts.backends.LocalBackend", "accounts.backends.RoleBackend"]
if LDAP["url"]:
    AUTHENTICATION_BACKENDS.append("accounts.ldap_directory.Backend")
AUTH_PASSWORD_VALIDATORS: list[dict[str, Any]] = [
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},
    },
    *(
        {"NAME": f"django.contrib.auth.password_validation.{name}"}
        for name in (
            "UserAttributeSimilarityValidator",
            "CommonPasswordValidator",
            "NumericPasswordValidator",
        )
    ),
]
# guardian's stand-in row for anonymous visitors would pass for a signed-in user.
ANONYMOUS_USER_NAME = None
GUARDIAN_MONKEY_PATCH_USER = False
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/"
ACCOUNT_ADAPTER = "accounts.adapters.AccountAdapter"
ACCOUNT_FORMS = {
    "login": "accounts.forms.SignInForm",
    "reset_password": "accounts.forms.AskForResetForm",
    "user_token": "accounts.forms.ResetLinkForm",
}
ACCOUNT_PASSWORD_RESET_TOKEN_GENERATOR = "django.contrib.auth.tokens.PasswordResetTokenGenerator"  # noqa: S105 - a class
PASSWORD_RESET_TIMEOUT = int(PASSWORD_RESET_AGE.total_seconds())
ACCOUNT_EMAIL_NOTIFICATIONS = True
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "password1*", "password2*"]
ACCOUNT_EMAIL_VERIFICATION = "none"
ACCOUNT_SESSION_REMEMBER = True
ACCOUNT_DEFAULT_HTTP_PROTOCOL = "https" if SECURE_COOKIES else "http"
#: `login_failed` is for second factors, whose password was right already.
ACCOUNT_RATE_LIMITS = {
    "login": "120/m/ip",
    "login_failed": "20/m/ip,5/5m/key,20/h/key",
    "reset_password": "10/m/ip,3/15m/key",
}
#: Failed passwords, see accounts.throttling. One address alone cannot use up `account`.
SIGN_IN_LIMITS = {
    "address": "20/m/ip",
    "pair": "5/5m/key,20/h/key",
    "account": "100/h/key",
    "device": "5/5m/key,30/h/key",
    "directory": f"{LDAP_FAILURES}/30m/key" if LDAP_FAILURES else "",
}
SCIM_FAILURES = "20/m/ip"
SOCIALACCOUNT_ADAPTER = "accounts.adapters.ProviderAdapter"
SOCIALACCOUNT_PROVIDERS = SIGN_IN_PROVIDERS.django_settings
# A link, not a form: a browser that follows `form-action` would stop at the provider's address.
SOCIALACCOUNT_LOGIN_ON_GET = True
MFA_ADAPTER = "accounts.adapters.SecondFactorAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = not SECURE_COOKIES
MFA_RECOVERY_CODES_SHOW_ONCE = True
MFA_ALLOW_UNVERIFIED_EMAIL = True
# What counts failed sign-ins must be seen by every web process, and outlive each.
CACHES = {
    "default": {
        "BACKEND": "condastore.databases.cache.DatabaseCache",
        "LOCATION": "accounts_cache",
        # Above what many addresses can fill in the minutes that a count lives: an early one that
        # was thrown away would allow more attempts.
        "OPTIONS": {"MAX_ENTRIES": 100_000},
    }
}

SESSION_ENGINE = "accounts.sessions"
SESSION_COOKIE_AGE = int(SESSION_AGE.total_seconds())
# The prefix makes browsers refuse a cookie of this name that another host of the domain, or a page
# without TLS, has set: nobody can plant a session.
_prefix = "__Host-" if SECURE_COOKIES else ""
SESSION_COOKIE_NAME = f"{_prefix}condastore_session"
CSRF_COOKIE_NAME = f"{_prefix}condastore_csrf"
DEVICE_COOKIE_NAME = f"{_prefix}condastore_device"
CSRF_FAILURE_VIEW = "condastore.http.error_responses.refusal"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_COOKIES
SECURE_HSTS_SECONDS = 31_536_000 if SECURE_COOKIES else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SECURE_COOKIES
SECURE_SSL_REDIRECT = False  # the proxy in front does it
SILENCED_SYSTEM_CHECKS = ["security.W008", "guardian.W001"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BEHIND_PROXY else None
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "font-src": ["'self'", "data:"],
        "object-src": ["'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_REQUEST_BYTES

STATIC_URL = "/static/"
STATICFILES_DIRS = [_data_folder("static")]
WHITENOISE_USE_FINDERS = True
STORAGES = {
    "default": blob_storage(BLOBS, BLOBS_OPTIONS),
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

LOGGING_CONFIG = "condastore.logs.configure"
LOGGING: dict[str, Any] = {"level": LOG_LEVEL, "format": LOG_FORMAT}
