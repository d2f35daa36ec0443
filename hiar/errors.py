"""The one exception a user may cause: a line that says what is wrong and what to do about it."""


class UserError(Exception):
    """A mistake the user can mend; the command line prints it as one line and exits with code 2.

    The message names the file or option, the field, the value found, and the remedy, for example
    ``params.yaml: teacher.steps = -3: should be at least 1; set a positive number of steps``.
    """
