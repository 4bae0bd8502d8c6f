"""GraphQL fragments and templates of the documents in `queries`."""

from __future__ import annotations

ERROR = """
fragment Refusal on OperationError {
  code message where hint details faults { message where hint code }
}
"""
FAILURE = """
fragment Explained on Failure {
  code message where hint
  faults { message where hint code }
  conflicts { requirements reason chain }
  missing { requirement channels similar }
}
"""
SHORT_BUILD = """
fragment Short on Build {
  id: databaseId number ref state finished isCurrent requestedBy createdAt finishedAt
  tags { name }
}
"""
FULL_BUILD = """
fragment Full on Build {
  id: databaseId number ref state finished
  isCurrent requestedBy createdAt startedAt finishedAt attempt
  platform prefixPath apparentSize uniqueSize sharedSize linkScripts sandboxed logLines
  environment { id: databaseId name folder pinned namespace { name } }
  tags { name }
  lock { digest packageCount platforms }
  timings { stage seconds }
  progress { stage done total bytesDone bytesTotal current }
  failure { ...Explained }
  downloads { name url }
  recalled reason
  missingFolder { state failure { message hint } }
  approvals { id: databaseId name version state chain deciders }
}
"""
LIVE_BUILD = """
fragment Live on Build {
  id: databaseId number ref state finished attempt
  progress { stage done total bytesDone bytesTotal current }
}
"""
FULL_ENVIRONMENT = """
fragment Whole on Environment {
  id: databaseId name description pinned folder createdAt updatedAt createdBy
  namespace { name }
  current { ...Short recalled }
  latest { ...Short }
  tags { name movedAt build { number } }
}
"""
PACKAGE = """
fragment Record on LockedPackage {
  name version build kind channel subdir url sha256 size license platform
}
"""
DIFF = """
fragment Changes on LockDiff {
  platform sizeDelta
  added { ...Record }
  removed { ...Record }
  changed { name kind old { ...Record } new { ...Record } }
}
"""
ISSUED = """
fragment Shown on ApiToken {
  id: databaseId name hint role namespaces createdAt expiresAt lastUsedAt lastUsedAddress revoked
}
"""
PAGE_INFO = "totalCount pageInfo { hasNextPage endCursor }"


def _variables(arguments: str) -> tuple[str, str]:
    """Return variable definitions and arguments for `name: Type, ...`."""
    parts = [part.partition(":") for part in arguments.split(", ")] if arguments else []
    variables = ", ".join(f"${name}:{kind}" for name, _, kind in parts)
    return variables, ", ".join(f"{name}: ${name}" for name, _, _ in parts)


def mutation(field: str, arguments: str, answer: str, *fragments: str) -> str:
    """Return a mutation that selects `answer` (`Type { fields }`) or the error.

    Args:
        arguments: `name: Type, ...`, also the names of the variables.
    """
    variables, values = _variables(arguments)
    return f"""
mutation {field[0].upper()}{field[1:]}({variables}) {{
  {field}({values}) {{
    __typename
    ... on {answer}
    ... on OperationError {{ ...Refusal }}
  }}
}}
{"".join(fragments)}{ERROR}"""


def paged_list(field: str, arguments: str, node: str, *fragments: str) -> str:
    """Return a query for a page of a list, with the fields `node` of each item."""
    parts = ("first: Int", "after: String", arguments)
    variables, values = _variables(", ".join(part for part in parts if part))
    return f"""
query {field[0].upper()}{field[1:]}({variables}) {{
  {field}({values}) {{
    {PAGE_INFO}
    edges {{ node {{ {node} }} }}
  }}
}}
{"".join(fragments)}"""
