"""Settings of the test suite: the real ones, on a data folder and database of its own."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("CONDASTORE_DATA", tempfile.mkdtemp(prefix="condastore-test-"))
os.environ.setdefault("CONDASTORE_SECRET_KEY", "only-for-tests-" + "x" * 40)
os.environ.setdefault("CONDASTORE_LOG_LEVEL", "ERROR")
# The servers and channels of the tests are on this machine; tests/security allows nothing.
os.environ.setdefault("CONDASTORE_ALLOWED_NETWORKS", "127.0.0.0/8,::1")
os.environ.setdefault("CONDASTORE_FILE_CHANNELS", "/")

from environments.engine.system.sandbox import can_sandbox

os.environ.setdefault("CONDASTORE_SANDBOX", "required" if can_sandbox() else "off")

from accounts.provisioning import Provisioning, digest
from condastore.settings import *  # noqa: F403
from condastore.settings import DATA, DATABASES, INSTALLED_APPS

# A test names the providers; their routes are made once.
INSTALLED_APPS += [f"allauth.socialaccount.providers.{kind}" for kind in ("openid_connect", "saml")]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # A file, not memory: threads and processes of the tests share it, as in real life.
    DATABASES["default"]["TEST"] = {"NAME": str(DATA / "test.sqlite3")}
#: The directory that provisions; its routes too are made once.
SCIM_TOKEN = "only-for-tests-" + "s" * 40
SCIM = Provisioning(
    directory="campus", issuer="https://idp.example.org", tokens=[digest(SCIM_TOKEN)]
)
