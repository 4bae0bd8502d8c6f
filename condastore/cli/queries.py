"""GraphQL documents of the command line, which a test validates against the schema."""

from __future__ import annotations

from condastore.cli.graphql_fragments import (
    DIFF,
    ERROR,
    FAILURE,
    FULL_BUILD,
    FULL_ENVIRONMENT,
    ISSUED,
    LIVE_BUILD,
    PACKAGE,
    PAGE_INFO,
    SHORT_BUILD,
    mutation,
    paged_list,
)

# --- accounts -------------------------------------------------------------------------------------
USERNAME = "query Username { me { username } }"
ME = """
query Me {
  me {
    username email isSuperuser tokenName
    namespaces { roles namespace { name } }
  }
}
"""
TOKENS = "query Tokens { me { username tokenName tokens { ...Shown } } }" + ISSUED
CREATE_SERVICE_ACCOUNT = mutation(
    "createServiceAccount", "name: String!", "ServiceAccount { username }"
)
CREATE_TOKEN = mutation(
    "createToken",
    "name: String!, role: Role, namespaces: [String!], days: Int!, serviceAccount: String",
    "CreatedToken { secret token { ...Shown } }",
    ISSUED,
)
REVOKE_TOKEN = mutation("revokeToken", "id: ID!", "ApiToken { ...Shown }", ISSUED)

# --- namespaces -----------------------------------------------------------------------------------
NAMESPACES = paged_list(
    "namespaces", "", "id name description personal public environments { totalCount }"
)
EAGER = mutation(
    "setEagerArtifacts",
    "namespace: String!, kinds: [ArtifactKind!]!",
    "Namespace { id: databaseId name eagerArtifacts }",
)
ADD_PIP = mutation(
    "setAddPipAsPythonDependency",
    "namespace: String!, on: Boolean!",
    "Namespace { id: databaseId name addPipAsPythonDependency }",
)
NAMESPACE = """
query Namespace($name: String!) {
  namespace(name: $name) {
    id: databaseId name description personal public createdAt myPermissions eagerArtifacts baseImage
    addPipAsPythonDependency
    environments { totalCount }
    quotas { kind used limit near }
    grants { role user group }
  }
}
"""
CREATE_NAMESPACE = mutation(
    "createNamespace",
    "name: String!, description: String!, public: Boolean!",
    "Namespace { id: databaseId name description personal public }",
)
GRANT = mutation(
    "grantRole",
    "namespace: String!, role: Role!, user: String, group: String",
    "Namespace { id: databaseId name }",
)
REVOKE = mutation(
    "revokeRole",
    "namespace: String!, user: String, group: String",
    "Namespace { id: databaseId name }",
)

CREDENTIALS = paged_list(
    "channelCredentials", "namespace: String", "id urlPrefix kind namespace namespaces createdAt"
)
SET_CREDENTIAL = mutation(
    "setChannelCredential",
    "channel: String!, secret: String!, kind: CredentialKind!, namespace: String, "
    "namespaces: [String!]",
    "ChannelCredential { id: databaseId urlPrefix kind namespace namespaces createdAt }",
)
DELETE_CREDENTIAL = mutation(
    "deleteChannelCredential",
    "id: ID!",
    "ChannelCredential { id: databaseId urlPrefix kind namespace createdAt }",
)

SET_QUOTA = mutation(
    "setQuota",
    "namespace: String!, bytes: BigInt, environments: Int, buildsAtOnce: Int, buildsADay: Int",
    "Namespace { id: databaseId name quotas { kind used limit near } }",
)

# --- hosted channels ------------------------------------------------------------------------------
_HOSTED = "id name namespace description public url packages size createdAt"
_HOSTED_PACKAGE = (
    "channel subdir fileName name version build sha256 size uploadedAt uploadedBy yankedAt "
    "yankedBy yankReason"
)
HOSTED_CHANNELS = paged_list("hostedChannels", "namespace: String", _HOSTED)
HOSTED_CHANNEL = f"""
query HostedChannel($name: String!) {{
  hostedChannel(name: $name) {{ {_HOSTED} }}
}}
"""
HOSTED_PACKAGES = paged_list("hostedPackages", "channel: String!, name: String", _HOSTED_PACKAGE)
_FILE = "channel: String!, subdir: String!, fileName: String!"
CREATE_HOSTED_CHANNEL = mutation(
    "createHostedChannel",
    "namespace: String!, name: String!, description: String!, public: Boolean!",
    f"HostedChannel {{ {_HOSTED} }}",
)
CHANGE_HOSTED_CHANNEL = mutation(
    "changeHostedChannel",
    "name: String!, description: String, public: Boolean",
    f"HostedChannel {{ {_HOSTED} }}",
)
DELETE_HOSTED_CHANNEL = mutation(
    "deleteHostedChannel", "name: String!", f"HostedChannel {{ {_HOSTED} }}"
)
YANK_PACKAGE = mutation(
    "yankPackage", f"{_FILE}, reason: String!", f"HostedPackage {{ {_HOSTED_PACKAGE} }}"
)
UNYANK_PACKAGE = mutation("unyankPackage", _FILE, f"HostedPackage {{ {_HOSTED_PACKAGE} }}")

# --- retention ------------------------------------------------------------------------------------
_RETENTION = "retention { keepLast keepDays keepTagged deleteDays }"
RETENTION = f"""
query Retention($name: String!) {{ namespace(name: $name) {{ id: databaseId name {_RETENTION} }} }}
"""
SET_RETENTION = mutation(
    "setRetention",
    "namespace: String!, keepLast: Int, keepDays: Int, deleteDays: Int, keepTagged: Boolean",
    f"Namespace {{ id: databaseId name {_RETENTION} }}",
)
RETENTION_PLAN = """
query RetentionPlan($namespace: String!) {
  retentionPlan(namespace: $namespace) {
    archived deleted size planned { build fate why size }
  }
}
"""
_HOLD = "id environment build reason placedBy placedAt"
HOLDS = paged_list("legalHolds", "namespace: String", _HOLD)
PLACE_HOLD = mutation(
    "placeHold", "environmentId: ID!, build: String, reason: String!", f"LegalHold {{ {_HOLD} }}"
)
RELEASE_HOLD = mutation("releaseHold", "id: ID!, reason: String!", f"LegalHold {{ {_HOLD} }}")
DELETED_BUILDS = paged_list("deletedBuilds", "namespace: String", "environment number deletedAt")
DELETED_ENVIRONMENTS = paged_list("deletedEnvironments", "namespace: String", "name deletedAt")
UNDELETE_BUILD = mutation(
    "undeleteBuild",
    "namespace: String!, environment: String!, number: Int!",
    "Build { id: databaseId ref state }",
)
UNDELETE_ENVIRONMENT = mutation(
    "undeleteEnvironment",
    "namespace: String!, name: String!",
    "Environment { id: databaseId name }",
)

# --- policies -------------------------------------------------------------------------------------
_RULE = """
fragment Shown on PolicyRule { id: databaseId name kind effect enabled position settings summary }
"""
POLICIES = paged_list("policies", "", "namespace version rules { ...Shown }", _RULE)
POLICY = (
    """
query Policy($namespace: String) {
  policy(namespace: $namespace) {
    namespace version digest mayChange rules { ...Shown } inherited { ...Shown }
    builtIn { name kind effect summary }
  }
}
"""
    + _RULE
)
POLICY_VERSIONS = paged_list(
    "policyVersions", "namespace: String", "number change comment changedBy changedAt rules"
)
ADD_RULE = mutation(
    "addPolicyRule",
    "namespace: String, kind: String!, effect: String!, name: String!, settings: JSON!, "
    "comment: String!",
    "PolicyRule { ...Shown }",
    _RULE,
)
CHANGE_RULE = mutation(
    "changePolicyRule",
    "id: ID!, effect: String, name: String, settings: JSON, enabled: Boolean, comment: String!",
    "PolicyRule { ...Shown }",
    _RULE,
)
RESTORE_POLICY = mutation(
    "restorePolicyVersion",
    "namespace: String, number: Int!, comment: String!",
    "EffectivePolicy { namespace version rules { ...Shown } }",
    _RULE,
)
REMOVE_RULE = mutation(
    "removePolicyRule", "id: ID!, comment: String!", "RemovedPolicyRule { name }"
)
SIMULATE = mutation(
    "simulatePolicy",
    "namespace: String, rules: [PolicyRuleInput!]",
    "PolicySimulation { environments packages blocked asked warned seconds touched { namespace "
    "environment build effect packages hits { rule effect package reason chain } } }",
)

# --- audit ----------------------------------------------------------------------------------------
AUDIT_EVENTS = paged_list(
    "auditEvents",
    "filters: AuditFilter",
    "position at username action target namespace refused address changes tokenId digest",
)
VERIFY_AUDIT = """
query VerifyAudit {
  verifyAudit { intact checked start end digest fault { position message } }
}
"""
VERIFY_AUDIT_ANCHOR = """
query($lines: [String!]!) {
  verifyAuditAnchor(lines: $lines) { intact checked newest position fault { line message } }
}
"""
PRUNE_AUDIT = mutation("pruneAudit", "before: DateTime!", "PrunedAudit { events position }")

# --- environments and builds ----------------------------------------------------------------------
ENVIRONMENTS = paged_list(
    "environments",
    "filters: EnvironmentFilter",
    "id name description pinned updatedAt lastUsedAt namespace { name } current { ...Short "
    "recalled } latest { ...Short }",
    SHORT_BUILD,
)
ENVIRONMENT = (
    """
query Environment($namespace: String!, $name: String!) {
  environment(namespace: $namespace, name: $name) { ...Whole }
}
"""
    + FULL_ENVIRONMENT
    + SHORT_BUILD
)
HISTORY = (
    f"""
query History($namespace: String!, $name: String!, $first: Int, $after: String) {{
  environment(namespace: $namespace, name: $name) {{
    builds(first: $first, after: $after) {{
      {PAGE_INFO}
      edges {{ node {{
        ...Short timings {{ stage seconds }} failure {{ message }} lock {{ digest packageCount }}
      }} }}
    }}
  }}
}}
"""
    + SHORT_BUILD
)
BUILD = (
    """
query Build($namespace: String!, $environment: String!, $number: String!) {
  build(namespace: $namespace, environment: $environment, number: $number) { ...Full }
}
"""
    + FULL_BUILD
    + FAILURE
)
BUILD_BY_ID = "query BuildById($id: ID!) { build(id: $id) { ...Full } }" + FULL_BUILD + FAILURE
ARTIFACTS = """
query Artifacts($namespace: String!, $environment: String!, $number: String!) {
  build(namespace: $namespace, environment: $environment, number: $number) {
    artifacts {
      id: databaseId kind platform state fileName url size sha256 seconds
      progress { stage done total } failure { message }
    }
  }
}
"""
PREFIX = """
query Prefix($namespace: String!, $environment: String!, $number: String!) {
  build(namespace: $namespace, environment: $environment, number: $number) {
    ref number state platform prefixPath recalled
    missingFolder { state failure { message hint } }
    environment { name lastUsedAt namespace { name } }
  }
}
"""
SOURCE = """
query Source($namespace: String!, $environment: String!, $number: String!) {
  build(namespace: $namespace, environment: $environment, number: $number) {
    ref source specification { digest channels platforms description }
  }
}
"""
LOG = """
query Log($id: ID!, $start: Int!, $limit: Int!) {
  build(id: $id) { id: databaseId finished logLines log(start: $start, limit: $limit) }
}
"""
PROGRESS = (
    """
query Progress($id: ID!, $start: Int!, $limit: Int!) {
  build(id: $id) { ...Live logLines log(start: $start, limit: $limit) }
}
"""
    + LIVE_BUILD
)
FOLLOW = (
    """
subscription Follow($id: ID!, $fromLine: Int!) {
  buildProgress(buildId: $id, fromLine: $fromLine) { build { ...Live } newLines nextLine }
}
"""
    + LIVE_BUILD
)
PACKAGES = (
    f"""
query Packages(
  $namespace: String!, $environment: String!, $number: String!
  $platform: String, $search: String, $first: Int, $after: String
) {{
  build(namespace: $namespace, environment: $environment, number: $number) {{
    lock {{
      packages(platform: $platform, search: $search, first: $first, after: $after) {{
        {PAGE_INFO}
        edges {{ node {{ ...Record }} }}
      }}
    }}
  }}
}}
"""
    + PACKAGE
)
CHANGES = (
    """
query Changes(
  $namespace: String!, $environment: String!, $number: String!, $platform: String
) {
  build(namespace: $namespace, environment: $environment, number: $number) {
    ref diffTo(platform: $platform) { ...Changes }
  }
}
"""
    + DIFF
    + PACKAGE
)
COMPARE = (
    """
query Compare($old: ID!, $new: ID!, $platform: String) {
  compareBuilds(before: $old, after: $new, platform: $platform) { ...Changes }
}
"""
    + DIFF
    + PACKAGE
)
WHY = """
query Why(
  $namespace: String!, $environment: String!, $number: String!, $name: String!, $platform: String
) {
  build(namespace: $namespace, environment: $environment, number: $number) {
    ref why(name: $name, platform: $platform)
  }
}
"""
CREATE_ENVIRONMENT = mutation(
    "createEnvironment",
    "namespace: String!, name: String!, description: String!, specification: String",
    "Environment { ...Whole }",
    FULL_ENVIRONMENT,
    SHORT_BUILD,
)
SUBMIT = mutation(
    "submitBuild",
    "namespace: String!, environment: String!, specification: String!, "
    "idempotencyKey: String, forceSolve: Boolean!, platforms: [String!], reason: String!",
    "SubmittedBuild { created warnings build { ...Live } }",
    LIVE_BUILD,
)
_PREVIEW = (
    """
fragment Seen on Preview {
  id: databaseId state warnings createdAt finishedAt
  verdicts { rule effect subject reason chain }
  failure { ...Explained }
  lock { digest packageCount platforms size }
  diff(platform: $platform) { ...Changes }
}
"""
    + FAILURE
    + DIFF
    + PACKAGE
)
PREVIEW_SOLVE = (
    """
mutation PreviewSolve(
  $namespace: String!, $environment: String, $specification: String!
  $forceSolve: Boolean!, $platforms: [String!], $platform: String
) {
  previewSolve(
    namespace: $namespace, environment: $environment, specification: $specification
    forceSolve: $forceSolve, platforms: $platforms
  ) {
    __typename
    ... on Preview { ...Seen }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _PREVIEW
    + ERROR
)
PREVIEW = "query Preview($id: ID!, $platform: String) { preview(id: $id) { ...Seen } }" + _PREVIEW


def _of_build(field: str, more: str = "") -> str:
    return mutation(field, f"id: ID!{more}", "Build { ...Full }", FULL_BUILD, FAILURE)


def _of_environment(field: str, more: str = "") -> str:
    arguments = f"environmentId: ID!{more}"
    return mutation(field, arguments, "Environment { ...Whole }", FULL_ENVIRONMENT, SHORT_BUILD)


CANCEL = _of_build("cancelBuild")
PIN = _of_build("setCurrentBuild", ", pin: Boolean!")
TAG = _of_build("tagBuild", ", tag: String!")
ARCHIVE = _of_build("archiveBuild")
RESTORE = _of_build("restoreBuild")
DELETE_BUILD = _of_build("deleteBuild")
UNPIN = _of_environment("unpin")
UNTAG = _of_environment("untag", ", tag: String!")
ROLLBACK = _of_environment("rollback", ", to: ID")
SHARE = _of_environment("shareEnvironment", ", user: String, group: String")
UNSHARE = _of_environment("unshareEnvironment", ", user: String, group: String")
COPY = _of_environment("copyEnvironment", ", namespace: String!, name: String!")
MOVE = _of_environment("moveEnvironment", ", namespace: String!")
RENAME = _of_environment("renameEnvironment", ", name: String!")
DELETE = _of_environment("deleteEnvironment")

# --- packages -------------------------------------------------------------------------------------
SEARCH = paged_list(
    "packages", "search: String!, channel: String", "name channel { name } latestVersion"
)
CHANNELS = paged_list("channels", "", "name indexedAt")
CONTAINS = paged_list(
    "lockedPackages",
    "name: String!, version: String, currentOnly: Boolean!",
    "package { ...Record } environment { name namespace { name } } build { number ref state "
    "isCurrent }",
    PACKAGE,
)

# --- mirrors --------------------------------------------------------------------------------------
_MIRROR = """
fragment Mirrored on Mirror {
  id: databaseId name url upstream namespace public packages size createdAt
  subdirs { subdir records lookedAt changedAt failure }
}
"""
MIRRORS = paged_list("mirrors", "", "...Mirrored", _MIRROR)
MIRROR = (
    """
query Mirror($name: String!) {
  mirror(name: $name) { ...Mirrored }
}
"""
    + _MIRROR
)
CREATE_MIRROR = mutation(
    "createMirror",
    "name: String!, upstream: String!, namespace: String, public: Boolean!, subdirs: [String!]",
    "Mirror { ...Mirrored }",
    _MIRROR,
)
CHANGE_MIRROR = mutation(
    "changeMirror",
    "id: ID!, namespace: String, public: Boolean, subdirs: [String!]",
    "Mirror { ...Mirrored }",
    _MIRROR,
)
DELETE_MIRROR = mutation("deleteMirror", "id: ID!", "Mirror { ...Mirrored }", _MIRROR)

# --- approvals and recalls ------------------------------------------------------------------------
_REQUEST = """
fragment Asked on ApprovalRequest {
  id: databaseId namespace manager name version
  build channel license size sha256 publishedAt firstSeenAt
  installScripts rule reason chain state openedAt decidedAt approvedVersions environments deciders
  mayDecide
  waiting { build state askedBy note at }
  decision {
    id: databaseId approved scope spec namespace
    reason expiresAt decidedBy secondedBy complete inForce
  }
}
"""
APPROVALS = paged_list("approvalRequests", "filters: ApprovalRequestFilter", "...Asked", _REQUEST)
APPROVAL = "query Approval($id: ID!) { approvalRequest(id: $id) { ...Asked } }" + _REQUEST
DECIDE = mutation(
    "decide",
    "requests: [ID!]!, approve: Boolean!, reason: String!, scope: DecisionScope!, spec: "
    "String!, everywhere: Boolean!, expiresAt: DateTime",
    "Decided { decisions { id: databaseId complete expiresAt } requests { ...Asked } }",
    _REQUEST,
)
SECOND = mutation("secondDecision", "id: ID!", "PackageDecision { id: databaseId complete }")
EXPLAIN_REQUEST = mutation(
    "explainRequest", "id: ID!, note: String!", "ApprovalRequest { ...Asked }", _REQUEST
)
_DECISION = """
fragment Told on PackageDecision {
  id: databaseId approved scope manager name
  spec sha256 namespace reason expiresAt decidedBy decidedAt
  secondedBy complete revokedAt revokedBy inForce
}
"""
DECISIONS = paged_list("decisions", "filters: DecisionFilter", "...Told", _DECISION)
REVOKE_DECISION = mutation(
    "revokeDecision", "id: ID!, reason: String!", "PackageDecision { ...Told }", _DECISION
)
_WEBHOOK = "fragment Hook on Webhook { id: databaseId namespace url events enabled createdAt }"
WEBHOOKS = paged_list("webhooks", "namespace: String", "...Hook", _WEBHOOK)
CREATE_WEBHOOK = mutation(
    "createWebhook",
    "namespace: String, url: String!, events: [String!]",
    "CreatedWebhook { secret webhook { ...Hook } }",
    _WEBHOOK,
)
DELETE_WEBHOOK = mutation("deleteWebhook", "id: ID!", "Webhook { ...Hook }", _WEBHOOK)
TEST_WEBHOOK = mutation("testWebhook", "id: ID!", "Webhook { ...Hook }", _WEBHOOK)
_PUSH_RULE = """
fragment Rule on PushRule {
  id: databaseId namespace pattern target createdAt createdBy
  pushes { build target state wantedAt pushedAt attempts nextAttemptAt problem digest sentBytes }
}
"""
PUSH_RULES = paged_list("pushRules", "namespace: String", "...Rule", _PUSH_RULE)
CREATE_PUSH_RULE = mutation(
    "createPushRule",
    "namespace: String!, pattern: String!, target: String!",
    "PushRule { ...Rule }",
    _PUSH_RULE,
)
PUSH_AGAIN = mutation("pushAgain", "id: ID!", "PushRule { ...Rule }", _PUSH_RULE)
DELETE_PUSH_RULE = mutation("deletePushRule", "id: ID!", "PushRule { ...Rule }", _PUSH_RULE)
KEEP_REGISTRY_LOGIN = mutation(
    "keepRegistryLogin",
    "namespace: String, registry: String!, login: String!",
    "ChannelCredential { id: databaseId namespace urlPrefix kind createdAt }",
)
SET_BASE_IMAGE = mutation(
    "setBaseImage",
    "namespace: String!, base: String!",
    "Namespace { id: databaseId name baseImage }",
)
_RECALL = """
fragment Recalled on Recall {
  id: databaseId manager spec sha256 reason recalledBy recalledAt undoneBy undoneAt locks
}
"""
RECALLS = paged_list("recalls", "filters: RecallFilter", "...Recalled", _RECALL)
RECALL_HITS = paged_list("recallHits", "id: ID!", "build state isCurrent requestedBy packages")
RECALL_PREVIEW = """
query RecallPreview($spec: String!, $sha256: String!, $manager: String!) {
  recallPreview(spec: $spec, sha256: $sha256, manager: $manager) {
    buildCount environmentCount namespaceCount requesterCount
    builds { build state isCurrent requestedBy packages }
  }
}
"""
RECALL = mutation(
    "recall",
    "spec: String!, sha256: String!, manager: String!, reason: String!",
    "Recall { ...Recalled }",
    _RECALL,
)
UNDO_RECALL = mutation("undoRecall", "id: ID!, reason: String!", "Recall { ...Recalled }", _RECALL)
