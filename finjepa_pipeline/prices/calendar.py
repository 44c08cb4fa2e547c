"""The sessions of an exchange."""

import datetime
from functools import lru_cache

from finjepa_model.errors import FinJEPAError


@lru_cache
def sessions(calendar: str) -> tuple[datetime.date, ...]:
    """The sessions of an exchange from 1962 to the end of next year.

    Raises:
        FinJEPAError: if there is no such calendar.
    """
    import exchange_calendars
    from exchange_calendars.errors import CalendarError

    end = datetime.date(datetime.date.today().year + 1, 12, 31)
    try:
        # The default range of the library is the last 20 years: ask for all of them.
        found = exchange_calendars.get_calendar(calendar, start="1962-01-02", end=end.isoformat())
    except CalendarError as error:
        raise FinJEPAError(
            f"there is no exchange calendar {calendar!r}; New York is XNYS, every day is 24/7"
        ) from error
    return tuple(found.sessions.date)


def sessions_behind(calendar: str, last: datetime.date, now: datetime.datetime) -> int:
    """How many closed sessions lie after `last` at `now` (with a time zone)."""
    import exchange_calendars

    first = last - datetime.timedelta(days=14)  # a calendar must not be empty
    found = exchange_calendars.get_calendar(calendar, start=first.isoformat())
    return sum(day.date() > last and found.session_close(day) <= now for day in found.sessions)


def session_after(calendar: str, last: datetime.date, count: int) -> datetime.date:
    """The `count`-th session of an exchange after a day; the `count`-th weekday where no calendar says."""
    import exchange_calendars
    import numpy as np
    from exchange_calendars.errors import CalendarError

    first, end = last - datetime.timedelta(days=14), last + datetime.timedelta(days=2 * count + 30)
    try:
        found = exchange_calendars.get_calendar(calendar, start=first.isoformat(), end=end.isoformat())
        return [day for day in found.sessions.date if day > last][count - 1]
    except (CalendarError, ValueError, IndexError):
        return np.busday_offset(last, count, roll="backward").item()
