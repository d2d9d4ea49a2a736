"""What a person can do about a line that does not open, by the words in which systems say it. Pure."""

_REMEDIES = (
    ("certificate has expired", "Renew the destination's certificate, or this box's; is this box's clock right?"),
    ("certificate is not yet valid", "This box's clock is behind: see its time service."),
    ("hostname mismatch", "Reach it under a name that its certificate has."),
    ("ip address mismatch", "Reach it under a name that its certificate has."),
    ("self-signed certificate", "Name the certificates that sign it in `ca_file`."),
    ("self signed certificate", "Name the certificates that sign it in `ca_file`."),
    ("unable to get local issuer", "Name the certificates that sign it in `ca_file`."),
    ("certificate required", "It wants a certificate of this box: see `identity` or `cert_file`."),
    ("bad certificate", "It does not take this box's certificate: see `millwright identity status`."),
    ("wrong version number", "Does it speak TLS at this port?"),
    ("not authorized", "It refuses this box: see `username`, `password` and its access rules."),
    ("bad user name or password", "It refuses this box: see `username` and `password`."),
    ("identifier rejected", "It refuses the name of the session."),
    ("name or service not known", "Is the name right, and does this box reach a name server?"),
    ("name resolution", "Is the name right, and does this box reach a name server?"),
    ("nodename nor servname", "Is the name right, and does this box reach a name server?"),
    ("connection refused", "Is it running, and is the port right?"),
    ("no route to host", "Is there a network? `ip route` tells."),
    ("network is unreachable", "Is there a network? `ip route` tells."),
    ("no answer", "Is it running? A firewall may swallow what is sent."),
)
LATER = "It is tried again by itself."


def remedy(problem: str) -> str:
    lower = problem.lower()
    return next((remedy for words, remedy in _REMEDIES if words in lower), LATER)
