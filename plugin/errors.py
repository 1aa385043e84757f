"""
Everything that langchain-pareto raises on purpose.

* ParetoError
  x BudgetError (ValueError)               a budget that cannot be understood, or has no price
  x BudgetExceeded (RuntimeError)          a limit was reached: with `on_limit="error"`, or before a first token
  x SettingError (ValueError)              a setting, question or prompt that cannot be honoured
  x CertificateRefused (ValueError)        a guarantee that the calibration questions cannot support
  x ScorerError (RuntimeError)             a scorer or verifier failed
  x BackendError (RuntimeError)
    + CapacityError (MemoryError)          does not fit into the pool or the device's memory
    + ContextLengthError (ValueError)      longer than the model's context
    + CapabilityError (NotImplementedError)  this model or engine cannot do it
      . NotRecorded                          recorded answers do not say what a model would have done
    + SequenceError (ValueError)           a freed, foreign or busy branch, or a bad length
    + VocabularyMismatchError (ValueError) draft and target read tokens differently
    + ModelLoadError (OSError)             weights or tokenizer missing, truncated or unreadable
    + NumericalError (ArithmeticError)     NaN or infinite logits
    + EngineClosedError                    the engine was closed, belongs to another process, or the process ends
    + EngineFailedError                    a step or the device failed; `__cause__` has the original

Every error also is the builtin that a caller would catch. `hint` says what to do, and is shown below the message.
"""


class ParetoError(Exception):
    """Root of the tree above; `hint` is shown as a note under the traceback."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint is not None:
            self.add_note(hint)


class BudgetError(ParetoError, ValueError):
    """A budget that cannot be understood, or kept for want of a price: what was got, and what is accepted."""


class BudgetExceeded(ParetoError, RuntimeError):
    """A limit was reached; `spent` and `limit` are in units of `resource`."""

    def __init__(
        self, message: str, *, resource: str, spent: float, limit: float, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.resource = resource
        self.spent = spent
        self.limit = limit


class SettingError(ParetoError, ValueError):
    """A setting, question or prompt that cannot be honoured."""


class CertificateRefused(ParetoError, ValueError):
    """A guarantee that cannot be certified: for want of "questions" (of which `needed` would do), of "labels", or for too many "losses" of the safest plan; `reason` says which."""

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        questions: int,
        needed: int | None = None,
        losses: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.questions = questions
        self.needed = needed
        self.losses = losses


class ScorerError(ParetoError, RuntimeError):
    """A scorer or verifier raised, timed out, or returned something that is not a score."""


class NothingScoredError(ScorerError):
    """A scorer works, but could tell nothing of any sample that it was asked about at once."""


class BackendError(ParetoError, RuntimeError):
    """Root of what a backend raises."""


class CapacityError(BackendError, MemoryError):
    """Does not fit into the pool even alone, or into the device's memory; `kind` says what ran out, `needed` and `free` count token slots (or the tokens of the step)."""

    def __init__(
        self, message: str, *, needed: int, free: int, kind: str, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.needed = needed
        self.free = free
        self.kind = kind


class ContextLengthError(BackendError, ValueError):
    """A sequence of `length` tokens is longer than the model's `limit`."""

    def __init__(self, message: str, *, length: int, limit: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.length = length
        self.limit = limit


class CapabilityError(BackendError, NotImplementedError):
    """This model or engine cannot do what was asked."""


class NotRecorded(CapabilityError):
    """Recorded answers do not say what a model would have done here."""


class SequenceError(BackendError, ValueError):
    """A freed, foreign or busy branch, or a length outside it."""


class VocabularyMismatchError(BackendError, ValueError):
    """A draft and its target have different vocabularies."""


class ModelLoadError(BackendError, OSError):
    """Weights or tokenizer are missing, truncated or unreadable."""


class NumericalError(BackendError, ArithmeticError):
    """The model gave NaN or infinite logits."""


class EngineClosedError(BackendError):
    """The engine was closed, or belongs to another process."""


class EngineFailedError(BackendError):
    """A step or the device failed; `__cause__` has the original error."""
