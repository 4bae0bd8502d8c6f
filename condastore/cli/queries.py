"""The GraphQL documents that the command line sends: all of them, so that a test can check them."""

from __future__ import annotations

from collections.abc import Mapping

_ERROR = """
fragment Refusal on OperationError {
  code message where hint details faults { message where hint code }
}
"""
_FAILURE = """
fragment Explained on Failure {
  code message where hint
  faults { message where hint code }
  conflicts { requirements reason chain }
  missing { requirement channels similar }
}
"""
_SHORT = """
fragment Short on Build {
  id number ref state finished isCurrent requestedBy createdAt finishedAt
  tags { name }
}
"""
_BUILD = """
fragment Full on Build {
  id number ref state finished isCurrent requestedBy createdAt startedAt finishedAt attempt
  platform prefixPath apparentSize uniqueSize sharedSize linkScripts sandboxed logLines
  environment { id name folder pinned namespace { name } }
  tags { name }
  lock { digest packageCount platforms }
  timings { stage seconds }
  progress { stage done total bytesDone bytesTotal current }
  failure { ...Explained }
  downloads { name url }
  recalled reason
  approvals { id name version state chain deciders }
}
"""
_LIVE = """
fragment Live on Build {
  id number ref state finished attempt
  progress { stage done total bytesDone bytesTotal current }
}
"""
_ENVIRONMENT = """
fragment Whole on Environment {
  id name description pinned folder createdAt updatedAt createdBy
  namespace { name }
  current { ...Short }
  latest { ...Short }
  tags { name movedAt build { number } }
}
"""
_PACKAGE = """
fragment Record on LockedPackage {
  name version build kind channel subdir url sha256 size license platform
}
"""
_DIFF = """
fragment Changes on LockDiff {
  platform sizeDelta
  added { ...Record }
  removed { ...Record }
  changed { name kind old { ...Record } new { ...Record } }
}
"""
_SECRETLESS = """
fragment Shown on ApiToken {
  id name hint role namespaces createdAt expiresAt lastUsedAt lastUsedAddress revoked
}
"""
_PAGE = "totalCount pageInfo { hasNextPage endCursor }"

# --- who ------------------------------------------------------------------------------------------
USERNAME = "query Username { me { username } }"
ME = """
query Me {
  me {
    username email isSuperuser tokenName
    namespaces { roles namespace { name } }
  }
}
"""
TOKENS = "query Tokens { me { username tokenName tokens { ...Shown } } }" + _SECRETLESS
CREATE_SERVICE_ACCOUNT = (
    """
mutation CreateServiceAccount($name: String!) {
  createServiceAccount(name: $name) {
    __typename
    ... on ServiceAccount { username }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)
CREATE_TOKEN = (
    """
mutation CreateToken(
  $name: String!, $role: Role, $namespaces: [String!], $days: Int!, $serviceAccount: String
) {
  createToken(
    name: $name, role: $role, namespaces: $namespaces, days: $days, serviceAccount: $serviceAccount
  ) {
    __typename
    ... on CreatedToken { secret token { ...Shown } }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _SECRETLESS
    + _ERROR
)
REVOKE_TOKEN = (
    """
mutation RevokeToken($id: ID!) {
  revokeToken(id: $id) {
    __typename
    ... on ApiToken { ...Shown }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _SECRETLESS
    + _ERROR
)

# --- namespaces -----------------------------------------------------------------------------------
NAMESPACES = f"""
query Namespaces($first: Int, $after: String) {{
  namespaces(first: $first, after: $after) {{
    {_PAGE}
    edges {{ node {{ id name description personal public environments {{ totalCount }} }} }}
  }}
}}
"""
EAGER = (
    """
mutation Eager($namespace: String!, $kinds: [ArtifactKind!]!) {
  setEagerArtifacts(namespace: $namespace, kinds: $kinds) {
    __typename
    ... on Namespace { id name eagerArtifacts }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)
NAMESPACE = """
query Namespace($name: String!) {
  namespace(name: $name) {
    id name description personal public createdAt myPermissions eagerArtifacts baseImage
    environments { totalCount }
    quotas { kind used limit near }
    grants { role user group }
  }
}
"""
CREATE_NAMESPACE = (
    """
mutation CreateNamespace($name: String!, $description: String!, $public: Boolean!) {
  createNamespace(name: $name, description: $description, public: $public) {
    __typename
    ... on Namespace { id name description personal public }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)
GRANT = (
    """
mutation Grant($namespace: String!, $role: Role!, $user: String, $group: String) {
  grantRole(namespace: $namespace, role: $role, user: $user, group: $group) {
    __typename
    ... on Namespace { id name }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)
REVOKE = (
    """
mutation Revoke($namespace: String!, $user: String, $group: String) {
  revokeRole(namespace: $namespace, user: $user, group: $group) {
    __typename
    ... on Namespace { id name }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)

CREDENTIALS = f"""
query Credentials($first: Int, $after: String, $namespace: String) {{
  channelCredentials(first: $first, after: $after, namespace: $namespace) {{
    {_PAGE}
    edges {{ node {{ id urlPrefix kind namespace createdAt }} }}
  }}
}}
"""
DELETE_CREDENTIAL = (
    """
mutation DeleteCredential($id: ID!) {
  deleteChannelCredential(id: $id) {
    __typename
    ... on ChannelCredential { id urlPrefix kind namespace createdAt }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)

SET_QUOTA = (
    """
mutation SetQuota(
  $namespace: String!, $bytes: BigInt, $environments: Int, $buildsAtOnce: Int, $buildsADay: Int
) {
  setQuota(
    namespace: $namespace, bytes: $bytes, environments: $environments
    buildsAtOnce: $buildsAtOnce, buildsADay: $buildsADay
  ) {
    __typename
    ... on Namespace { id name quotas { kind used limit near } }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)

# --- hosted channels ------------------------------------------------------------------------------
_HOSTED = "id name namespace description public url packages size createdAt"
_HOSTED_PACKAGE = (
    "channel subdir fileName name version build sha256 size uploadedAt uploadedBy yankedAt "
    "yankedBy yankReason"
)
HOSTED_CHANNELS = f"""
query HostedChannels($first: Int, $after: String, $namespace: String) {{
  hostedChannels(first: $first, after: $after, namespace: $namespace) {{
    {_PAGE}
    edges {{ node {{ {_HOSTED} }} }}
  }}
}}
"""
HOSTED_CHANNEL = f"""
query HostedChannel($name: String!) {{
  hostedChannel(name: $name) {{ {_HOSTED} }}
}}
"""
HOSTED_PACKAGES = f"""
query HostedPackages($first: Int, $after: String, $channel: String!, $name: String) {{
  hostedPackages(first: $first, after: $after, channel: $channel, name: $name) {{
    {_PAGE}
    edges {{ node {{ {_HOSTED_PACKAGE} }} }}
  }}
}}
"""


def _hosted(name: str, arguments: Mapping[str, str], answer: str) -> str:
    """A mutation of a hosted channel, or of one of its packages."""
    kind, fields = answer.split(" ", 1)
    typed = ", ".join(f"${each}: {type_}" for each, type_ in arguments.items())
    given = ", ".join(f"{each}: ${each}" for each in arguments)
    return f"""
mutation {name[0].upper()}{name[1:]}({typed}) {{
  {name}({given}) {{
    __typename
    ... on {kind} {{ {fields} }}
    ... on OperationError {{ ...Refusal }}
  }}
}}
{_ERROR}"""


_FILE = {"channel": "String!", "subdir": "String!", "fileName": "String!"}
CREATE_HOSTED_CHANNEL = _hosted(
    "createHostedChannel",
    {"namespace": "String!", "name": "String!", "description": "String!", "public": "Boolean!"},
    f"HostedChannel {_HOSTED}",
)
CHANGE_HOSTED_CHANNEL = _hosted(
    "changeHostedChannel",
    {"name": "String!", "description": "String", "public": "Boolean"},
    f"HostedChannel {_HOSTED}",
)
DELETE_HOSTED_CHANNEL = _hosted(
    "deleteHostedChannel", {"name": "String!"}, f"HostedChannel {_HOSTED}"
)
YANK_PACKAGE = _hosted(
    "yankPackage", {**_FILE, "reason": "String!"}, f"HostedPackage {_HOSTED_PACKAGE}"
)
UNYANK_PACKAGE = _hosted("unyankPackage", _FILE, f"HostedPackage {_HOSTED_PACKAGE}")

# --- retention ------------------------------------------------------------------------------------
_RETENTION = "retention { keepLast keepDays keepTagged deleteDays }"
RETENTION = f"""
query Retention($name: String!) {{ namespace(name: $name) {{ id name {_RETENTION} }} }}
"""
SET_RETENTION = (
    f"""
mutation SetRetention(
  $namespace: String!, $keepLast: Int, $keepDays: Int, $deleteDays: Int, $keepTagged: Boolean
) {{
  setRetention(
    namespace: $namespace, keepLast: $keepLast, keepDays: $keepDays
    deleteDays: $deleteDays, keepTagged: $keepTagged
  ) {{
    __typename
    ... on Namespace {{ id name {_RETENTION} }}
    ... on OperationError {{ ...Refusal }}
  }}
}}
"""
    + _ERROR
)
RETENTION_PLAN = """
query RetentionPlan($namespace: String!) {
  retentionPlan(namespace: $namespace) {
    archived deleted size planned { build fate why size }
  }
}
"""
_HOLD = "id environment build reason placedBy placedAt"
HOLDS = f"""
query Holds($first: Int, $after: String, $namespace: String) {{
  legalHolds(first: $first, after: $after, namespace: $namespace) {{
    {_PAGE}
    edges {{ node {{ {_HOLD} }} }}
  }}
}}
"""
PLACE_HOLD = (
    f"""
mutation PlaceHold($environmentId: ID!, $build: String, $reason: String!) {{
  placeHold(environmentId: $environmentId, build: $build, reason: $reason) {{
    __typename
    ... on LegalHold {{ {_HOLD} }}
    ... on OperationError {{ ...Refusal }}
  }}
}}
"""
    + _ERROR
)
RELEASE_HOLD = (
    f"""
mutation ReleaseHold($id: ID!, $reason: String!) {{
  releaseHold(id: $id, reason: $reason) {{
    __typename
    ... on LegalHold {{ {_HOLD} }}
    ... on OperationError {{ ...Refusal }}
  }}
}}
"""
    + _ERROR
)
DELETED_BUILDS = f"""
query DeletedBuilds($first: Int, $after: String, $namespace: String) {{
  deletedBuilds(first: $first, after: $after, namespace: $namespace) {{
    {_PAGE}
    edges {{ node {{ environment number deletedAt }} }}
  }}
}}
"""
DELETED_ENVIRONMENTS = f"""
query DeletedEnvironments($first: Int, $after: String, $namespace: String) {{
  deletedEnvironments(first: $first, after: $after, namespace: $namespace) {{
    {_PAGE}
    edges {{ node {{ name deletedAt }} }}
  }}
}}
"""
UNDELETE_BUILD = (
    """
mutation UndeleteBuild($namespace: String!, $environment: String!, $number: Int!) {
  undeleteBuild(namespace: $namespace, environment: $environment, number: $number) {
    __typename
    ... on Build { id ref state }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)
UNDELETE_ENVIRONMENT = (
    """
mutation UndeleteEnvironment($namespace: String!, $name: String!) {
  undeleteEnvironment(namespace: $namespace, name: $name) {
    __typename
    ... on Environment { id name }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)

# --- policies -------------------------------------------------------------------------------------
_RULE = """
fragment Shown on PolicyRule { id name kind effect enabled position settings summary }
"""
POLICIES = (
    f"""
query Policies($first: Int, $after: String) {{
  policies(first: $first, after: $after) {{
    {_PAGE}
    edges {{ node {{ namespace version rules {{ ...Shown }} }} }}
  }}
}}
"""
    + _RULE
)
POLICY = (
    """
query Policy($namespace: String) {
  policy(namespace: $namespace) {
    namespace version digest mayChange rules { ...Shown } inherited { ...Shown }
  }
}
"""
    + _RULE
)
POLICY_VERSIONS = f"""
query PolicyVersions($first: Int, $after: String, $namespace: String) {{
  policyVersions(first: $first, after: $after, namespace: $namespace) {{
    {_PAGE}
    edges {{ node {{ number change comment changedBy changedAt rules }} }}
  }}
}}
"""
ADD_RULE = (
    """
mutation AddRule($namespace: String, $kind: String!, $effect: String!, $name: String!,
                 $settings: JSON!, $comment: String!) {
  addPolicyRule(namespace: $namespace, kind: $kind, effect: $effect, name: $name,
                settings: $settings, comment: $comment) {
    __typename
    ... on PolicyRule { ...Shown }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _RULE
    + _ERROR
)
CHANGE_RULE = (
    """
mutation ChangeRule($id: ID!, $effect: String, $name: String, $settings: JSON, $enabled: Boolean,
                    $comment: String!) {
  changePolicyRule(id: $id, effect: $effect, name: $name, settings: $settings, enabled: $enabled,
                   comment: $comment) {
    __typename
    ... on PolicyRule { ...Shown }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _RULE
    + _ERROR
)
RESTORE_POLICY = (
    """
mutation RestorePolicy($namespace: String, $number: Int!, $comment: String!) {
  restorePolicyVersion(namespace: $namespace, number: $number, comment: $comment) {
    __typename
    ... on EffectivePolicy { namespace version rules { ...Shown } }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _RULE
    + _ERROR
)
REMOVE_RULE = (
    """
mutation RemoveRule($id: ID!, $comment: String!) {
  removePolicyRule(id: $id, comment: $comment) {
    __typename
    ... on RemovedPolicyRule { name }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)
SIMULATE = (
    """
mutation Simulate($namespace: String, $rules: [PolicyRuleInput!]) {
  simulatePolicy(namespace: $namespace, rules: $rules) {
    __typename
    ... on PolicySimulation {
      environments packages blocked asked warned seconds
      touched {
        namespace environment build effect packages
        hits { rule effect package reason chain }
      }
    }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)

# --- audit ----------------------------------------------------------------------------------------
AUDIT_EVENTS = f"""
query AuditEvents($first: Int, $after: String, $filters: AuditFilter) {{
  auditEvents(first: $first, after: $after, filters: $filters) {{
    {_PAGE}
    edges {{ node {{
      position at username action target namespace refused address changes tokenId digest
    }} }}
  }}
}}
"""
VERIFY_AUDIT = """
query VerifyAudit {
  verifyAudit { intact checked start end digest fault { position message } }
}
"""
PRUNE_AUDIT = (
    """
mutation PruneAudit($before: DateTime!) {
  pruneAudit(before: $before) {
    __typename
    ... on PrunedAudit { events position }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)

# --- environments and builds ----------------------------------------------------------------------
ENVIRONMENTS = (
    f"""
query Environments($first: Int, $after: String, $filters: EnvironmentFilter) {{
  environments(first: $first, after: $after, filters: $filters) {{
    {_PAGE}
    edges {{ node {{
      id name description pinned updatedAt lastUsedAt namespace {{ name }}
      current {{ ...Short }}
      latest {{ ...Short }}
    }} }}
  }}
}}
"""
    + _SHORT
)
ENVIRONMENT = (
    """
query Environment($namespace: String!, $name: String!) {
  environment(namespace: $namespace, name: $name) { ...Whole }
}
"""
    + _ENVIRONMENT
    + _SHORT
)
HISTORY = (
    f"""
query History($namespace: String!, $name: String!, $first: Int, $after: String) {{
  environment(namespace: $namespace, name: $name) {{
    builds(first: $first, after: $after) {{
      {_PAGE}
      edges {{ node {{ ...Short failure {{ message }} lock {{ digest packageCount }} }} }}
    }}
  }}
}}
"""
    + _SHORT
)
BUILD = (
    """
query Build($namespace: String!, $environment: String!, $number: String!) {
  build(namespace: $namespace, environment: $environment, number: $number) { ...Full }
}
"""
    + _BUILD
    + _FAILURE
)
BUILD_BY_ID = "query BuildById($id: ID!) { build(id: $id) { ...Full } }" + _BUILD + _FAILURE
ARTIFACTS = """
query Artifacts($namespace: String!, $environment: String!, $number: String!) {
  build(namespace: $namespace, environment: $environment, number: $number) {
    artifacts {
      id kind platform state fileName url size sha256 seconds
      progress { stage done total } failure { message }
    }
  }
}
"""
PREFIX = """
query Prefix($namespace: String!, $environment: String!, $number: String!) {
  build(namespace: $namespace, environment: $environment, number: $number) {
    ref number state platform prefixPath recalled
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
  build(id: $id) { id finished logLines log(start: $start, limit: $limit) }
}
"""
PROGRESS = (
    """
query Progress($id: ID!, $start: Int!, $limit: Int!) {
  build(id: $id) { ...Live logLines log(start: $start, limit: $limit) }
}
"""
    + _LIVE
)
FOLLOW = (
    """
subscription Follow($id: ID!, $fromLine: Int!) {
  buildProgress(buildId: $id, fromLine: $fromLine) { build { ...Live } newLines nextLine }
}
"""
    + _LIVE
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
        {_PAGE}
        edges {{ node {{ ...Record }} }}
      }}
    }}
  }}
}}
"""
    + _PACKAGE
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
    + _DIFF
    + _PACKAGE
)
COMPARE = (
    """
query Compare($old: ID!, $new: ID!, $platform: String) {
  compareBuilds(a: $old, b: $new, platform: $platform) { ...Changes }
}
"""
    + _DIFF
    + _PACKAGE
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
CREATE_ENVIRONMENT = (
    """
mutation CreateEnvironment(
  $namespace: String!, $name: String!, $description: String!, $specification: String
) {
  createEnvironment(
    namespace: $namespace, name: $name, description: $description, specification: $specification
  ) {
    __typename
    ... on Environment { ...Whole }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ENVIRONMENT
    + _SHORT
    + _ERROR
)
SUBMIT = (
    """
mutation Submit(
  $namespace: String!, $environment: String!, $specification: String!, $idempotencyKey: String
  $forceSolve: Boolean!, $platforms: [String!], $reason: String!
) {
  submitBuild(
    namespace: $namespace, environment: $environment, specification: $specification
    idempotencyKey: $idempotencyKey, forceSolve: $forceSolve, platforms: $platforms
    reason: $reason
  ) {
    __typename
    ... on SubmittedBuild { created warnings build { ...Live } }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _LIVE
    + _ERROR
)
_PREVIEW = (
    """
fragment Seen on Preview {
  id state warnings createdAt finishedAt
  verdicts { rule effect subject reason chain }
  failure { ...Explained }
  lock { digest packageCount platforms size }
  diff(platform: $platform) { ...Changes }
}
"""
    + _FAILURE
    + _DIFF
    + _PACKAGE
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
    + _ERROR
)
PREVIEW = "query Preview($id: ID!, $platform: String) { preview(id: $id) { ...Seen } }" + _PREVIEW


def _change(name: str, field: str, variables: str, arguments: str, result: str) -> str:
    """A mutation of a build or an environment."""
    if result == "Build":
        shape, fragments = "...Full", _BUILD + _FAILURE
    else:
        shape, fragments = "...Whole", _ENVIRONMENT + _SHORT
    return f"""
mutation {name}({variables}) {{
  {field}({arguments}) {{
    __typename
    ... on {result} {{ {shape} }}
    ... on OperationError {{ ...Refusal }}
  }}
}}
{fragments}{_ERROR}"""


CANCEL = _change("Cancel", "cancelBuild", "$id: ID!", "id: $id", "Build")
PIN = _change("Pin", "setCurrentBuild", "$id: ID!, $pin: Boolean!", "id: $id, pin: $pin", "Build")
TAG = _change("Tag", "tagBuild", "$id: ID!, $tag: String!", "id: $id, tag: $tag", "Build")
ARCHIVE = _change("Archive", "archiveBuild", "$id: ID!", "id: $id", "Build")
RESTORE = _change("Restore", "restoreBuild", "$id: ID!", "id: $id", "Build")
DELETE_BUILD = _change("DeleteBuild", "deleteBuild", "$id: ID!", "id: $id", "Build")
UNPIN = _change("Unpin", "unpin", "$id: ID!", "environmentId: $id", "Environment")
UNTAG = _change(
    "Untag", "untag", "$id: ID!, $tag: String!", "environmentId: $id, tag: $tag", "Environment"
)
ROLLBACK = _change(
    "Rollback", "rollback", "$id: ID!, $to: ID", "environmentId: $id, to: $to", "Environment"
)
SHARE = _change(
    "Share",
    "shareEnvironment",
    "$id: ID!, $user: String, $group: String",
    "environmentId: $id, user: $user, group: $group",
    "Environment",
)
UNSHARE = _change(
    "Unshare",
    "unshareEnvironment",
    "$id: ID!, $user: String, $group: String",
    "environmentId: $id, user: $user, group: $group",
    "Environment",
)
COPY = _change(
    "Copy",
    "copyEnvironment",
    "$id: ID!, $namespace: String!, $name: String!",
    "environmentId: $id, namespace: $namespace, name: $name",
    "Environment",
)
MOVE = _change(
    "Move",
    "moveEnvironment",
    "$id: ID!, $namespace: String!",
    "environmentId: $id, namespace: $namespace",
    "Environment",
)
RENAME = _change(
    "Rename",
    "renameEnvironment",
    "$id: ID!, $name: String!",
    "environmentId: $id, name: $name",
    "Environment",
)
DELETE = _change("Delete", "deleteEnvironment", "$id: ID!", "environmentId: $id", "Environment")

# --- packages -------------------------------------------------------------------------------------
SEARCH = f"""
query Search($search: String!, $channel: String, $first: Int, $after: String) {{
  packages(search: $search, channel: $channel, first: $first, after: $after) {{
    {_PAGE}
    edges {{ node {{ name channel {{ name }} latestVersion }} }}
  }}
}}
"""
CONTAINS = (
    f"""
query Contains(
  $name: String!, $version: String, $currentOnly: Boolean!, $first: Int, $after: String
) {{
  lockedPackages(
    name: $name, version: $version, currentOnly: $currentOnly, first: $first, after: $after
  ) {{
    {_PAGE}
    edges {{ node {{
      package {{ ...Record }}
      environment {{ name namespace {{ name }} }}
      build {{ number ref state isCurrent }}
    }} }}
  }}
}}
"""
    + _PACKAGE
)

# --- mirrors --------------------------------------------------------------------------------------
_MIRROR = """
fragment Mirrored on Mirror {
  id name url upstream namespace public packages size createdAt
  subdirs { subdir records lookedAt changedAt failure }
}
"""
MIRRORS = (
    f"""
query Mirrors($first: Int, $after: String) {{
  mirrors(first: $first, after: $after) {{
    {_PAGE}
    edges {{ node {{ ...Mirrored }} }}
  }}
}}
"""
    + _MIRROR
)
MIRROR = (
    """
query Mirror($name: String!) {
  mirror(name: $name) { ...Mirrored }
}
"""
    + _MIRROR
)
CREATE_MIRROR = (
    """
mutation CreateMirror(
  $name: String!, $upstream: String!, $namespace: String, $public: Boolean!, $subdirs: [String!]
) {
  createMirror(
    name: $name, upstream: $upstream, namespace: $namespace, public: $public, subdirs: $subdirs
  ) {
    __typename
    ... on Mirror { ...Mirrored }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _MIRROR
    + _ERROR
)
CHANGE_MIRROR = (
    """
mutation ChangeMirror($id: ID!, $namespace: String, $public: Boolean, $subdirs: [String!]) {
  changeMirror(id: $id, namespace: $namespace, public: $public, subdirs: $subdirs) {
    __typename
    ... on Mirror { ...Mirrored }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _MIRROR
    + _ERROR
)
DELETE_MIRROR = (
    """
mutation DeleteMirror($id: ID!) {
  deleteMirror(id: $id) {
    __typename
    ... on Mirror { ...Mirrored }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _MIRROR
    + _ERROR
)

# --- approvals and recalls ------------------------------------------------------------------------
_REQUEST = """
fragment Asked on ApprovalRequest {
  id namespace manager name version build channel license size sha256 publishedAt firstSeenAt
  installScripts rule reason chain state openedAt decidedAt approvedVersions environments deciders
  mayDecide
  waiting { build state askedBy note at }
  decision {
    id approved scope spec namespace reason expiresAt decidedBy secondedBy complete inForce
  }
}
"""
APPROVALS = (
    f"""
query Approvals($first: Int, $after: String, $filters: ApprovalRequestFilter) {{
  approvalRequests(first: $first, after: $after, filters: $filters) {{
    {_PAGE}
    edges {{ node {{ ...Asked }} }}
  }}
}}
"""
    + _REQUEST
)
APPROVAL = "query Approval($id: ID!) { approvalRequest(id: $id) { ...Asked } }" + _REQUEST
DECIDE = (
    """
mutation Decide(
  $requests: [ID!]!, $approve: Boolean!, $reason: String!, $scope: DecisionScope!, $spec: String!
  $everywhere: Boolean!, $expiresAt: DateTime
) {
  decide(
    requests: $requests, approve: $approve, reason: $reason, scope: $scope, spec: $spec
    everywhere: $everywhere, expiresAt: $expiresAt
  ) {
    __typename
    ... on Decided { decisions { id complete expiresAt } requests { ...Asked } }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _REQUEST
    + _ERROR
)
SECOND = (
    """
mutation Second($id: ID!) {
  secondDecision(id: $id) {
    __typename
    ... on PackageDecision { id complete }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)
EXPLAIN_REQUEST = (
    """
mutation ExplainRequest($id: ID!, $note: String!) {
  explainRequest(id: $id, note: $note) {
    __typename
    ... on ApprovalRequest { ...Asked }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _REQUEST
    + _ERROR
)
_DECISION = """
fragment Told on PackageDecision {
  id approved scope manager name spec sha256 namespace reason expiresAt decidedBy decidedAt
  secondedBy complete revokedAt revokedBy inForce
}
"""
DECISIONS = (
    f"""
query Decisions($first: Int, $after: String, $filters: DecisionFilter) {{
  decisions(first: $first, after: $after, filters: $filters) {{
    {_PAGE}
    edges {{ node {{ ...Told }} }}
  }}
}}
"""
    + _DECISION
)
REVOKE_DECISION = (
    """
mutation RevokeDecision($id: ID!, $reason: String!) {
  revokeDecision(id: $id, reason: $reason) {
    __typename
    ... on PackageDecision { ...Told }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _DECISION
    + _ERROR
)
_WEBHOOK = "fragment Hook on Webhook { id namespace url events enabled createdAt }"
WEBHOOKS = (
    f"""
query Webhooks($first: Int, $after: String, $namespace: String) {{
  webhooks(first: $first, after: $after, namespace: $namespace) {{
    {_PAGE}
    edges {{ node {{ ...Hook }} }}
  }}
}}
"""
    + _WEBHOOK
)
CREATE_WEBHOOK = (
    """
mutation CreateWebhook($namespace: String, $url: String!, $events: [String!]) {
  createWebhook(namespace: $namespace, url: $url, events: $events) {
    __typename
    ... on CreatedWebhook { secret webhook { ...Hook } }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _WEBHOOK
    + _ERROR
)
DELETE_WEBHOOK = (
    """
mutation DeleteWebhook($id: ID!) {
  deleteWebhook(id: $id) {
    __typename
    ... on Webhook { ...Hook }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _WEBHOOK
    + _ERROR
)
TEST_WEBHOOK = (
    """
mutation TestWebhook($id: ID!) {
  testWebhook(id: $id) {
    __typename
    ... on Webhook { ...Hook }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _WEBHOOK
    + _ERROR
)
_PUSH_RULE = """
fragment Rule on PushRule {
  id namespace pattern target createdAt createdBy
  pushes { build target state wantedAt pushedAt attempts nextAttemptAt problem digest sentBytes }
}
"""
PUSH_RULES = (
    f"""
query PushRules($first: Int, $after: String, $namespace: String) {{
  pushRules(first: $first, after: $after, namespace: $namespace) {{
    {_PAGE}
    edges {{ node {{ ...Rule }} }}
  }}
}}
"""
    + _PUSH_RULE
)
CREATE_PUSH_RULE = (
    """
mutation CreatePushRule($namespace: String!, $pattern: String!, $target: String!) {
  createPushRule(namespace: $namespace, pattern: $pattern, target: $target) {
    __typename
    ... on PushRule { ...Rule }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _PUSH_RULE
    + _ERROR
)
PUSH_AGAIN = (
    """
mutation PushAgain($id: ID!) {
  pushAgain(id: $id) {
    __typename
    ... on PushRule { ...Rule }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _PUSH_RULE
    + _ERROR
)
DELETE_PUSH_RULE = (
    """
mutation DeletePushRule($id: ID!) {
  deletePushRule(id: $id) {
    __typename
    ... on PushRule { ...Rule }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _PUSH_RULE
    + _ERROR
)
KEEP_REGISTRY_LOGIN = (
    """
mutation KeepRegistryLogin($namespace: String, $registry: String!, $login: String!) {
  keepRegistryLogin(namespace: $namespace, registry: $registry, login: $login) {
    __typename
    ... on ChannelCredential { id namespace urlPrefix kind createdAt }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)
SET_BASE_IMAGE = (
    """
mutation SetBaseImage($namespace: String!, $base: String!) {
  setBaseImage(namespace: $namespace, base: $base) {
    __typename
    ... on Namespace { id name baseImage }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _ERROR
)
_RECALL = """
fragment Recalled on Recall {
  id manager spec sha256 reason recalledBy recalledAt undoneBy undoneAt locks
}
"""
RECALLS = (
    f"""
query Recalls($first: Int, $after: String, $active: Boolean) {{
  recalls(first: $first, after: $after, active: $active) {{
    {_PAGE}
    edges {{ node {{ ...Recalled }} }}
  }}
}}
"""
    + _RECALL
)
RECALL_HITS = f"""
query RecallHits($id: ID!, $first: Int, $after: String) {{
  recallHits(id: $id, first: $first, after: $after) {{
    {_PAGE}
    edges {{ node {{ build state isCurrent requestedBy packages }} }}
  }}
}}
"""
RECALL = (
    """
mutation Recall($spec: String!, $sha256: String!, $manager: String!, $reason: String!) {
  recall(spec: $spec, sha256: $sha256, manager: $manager, reason: $reason) {
    __typename
    ... on Recall { ...Recalled }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _RECALL
    + _ERROR
)
UNDO_RECALL = (
    """
mutation UndoRecall($id: ID!, $reason: String!) {
  undoRecall(id: $id, reason: $reason) {
    __typename
    ... on Recall { ...Recalled }
    ... on OperationError { ...Refusal }
  }
}
"""
    + _RECALL
    + _ERROR
)
