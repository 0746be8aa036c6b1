"""The checks behind `semipd doctor`: `survey_...` looks and judges nothing, `check_...` judges and looks at nothing."""

from semipd.cli.checkup.examination import examine

__all__ = ["examine"]
