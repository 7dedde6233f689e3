"""The one exception that is the user's to mend."""


class UserError(Exception):
    """A mistake in what was asked for. Its message is one sentence: the value, the rule, and the way out.

    `main` prints the message without a traceback and exits with code 2.
    """
