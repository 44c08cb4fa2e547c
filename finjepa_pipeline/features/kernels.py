"""Trailing statistics of ragged histories, compiled: one pass over the observations, no temporary array.

A running sum that adds the new day and subtracts the old one drags its rounding errors along, so that a value depends
on where the history began: an appended day would differ from a rebuild. Here each window is the sum of a suffix and a
prefix of two neighbouring blocks that are anchored at an asset's first observation (van Herk, 1992): three additions
whatever the window, no subtraction, and the same bits from any starting point.

All kernels take float64 [N], the observations of some assets in a row (NaN where missing), `ends_S` (int64, where each
asset's observations end) and `skipped_S` (int64, observations of the asset before the first one here), and fill float64
[N]. Compiled without fast-math: the order of additions is the one that is written. What is compiled is kept beside this
file, as bytecode is.

Shape suffixes: S assets, N observations of all of them in a row, W observations of a window.
"""

import numba
import numpy as np

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@compiled
def lag(x_N, ends_S, steps, out_N):
    """x of `steps` observations ago; NaN before an asset's first one."""
    begin = 0
    for end in ends_S:
        for n in range(begin, min(begin + steps, end)):
            out_N[n] = np.nan
        for n in range(begin + steps, end):
            out_N[n] = x_N[n - steps]
        begin = end


@compiled
def mean(x_N, ends_S, skipped_S, window, least, out_N):
    """Mean of the last `window` observations; NaN where fewer than `least` are known."""
    suffix_W, suffix_count_W = np.zeros(window + 1), np.zeros(window + 1, np.int64)
    begin = 0
    for asset in range(len(ends_S)):
        suffix_W[:], suffix_count_W[:] = 0.0, 0
        phase = skipped_S[asset] % window
        while begin < ends_S[asset]:
            stop = min(begin + window - phase, ends_S[asset])
            total, count = 0.0, 0
            for n in range(begin, stop):
                known = not np.isnan(x_N[n])
                total += x_N[n] if known else 0.0
                count += known
                place = phase + n - begin + 1
                all_count = count + suffix_count_W[place]
                out_N[n] = (total + suffix_W[place]) / all_count if all_count >= least else np.nan
            total, count = 0.0, 0
            for n in range(stop - 1, begin - 1, -1):
                known = not np.isnan(x_N[n])
                total += x_N[n] if known else 0.0
                count += known
                suffix_W[phase + n - begin], suffix_count_W[phase + n - begin] = total, count
            begin, phase = stop, 0


@compiled
def decayed_mean(x_N, ends_S, skipped_S, window, decay, least, out_N):
    """Weighted mean of the last `window` observations, weight decay ** age; NaN where fewer than `least` are known."""
    suffix_W, suffix_weight_W = np.zeros(window + 1), np.zeros(window + 1)
    suffix_count_W = np.zeros(window + 1, np.int64)
    powers_W = decay ** np.arange(window + 1)
    begin = 0
    for asset in range(len(ends_S)):
        suffix_W[:], suffix_weight_W[:], suffix_count_W[:] = 0.0, 0.0, 0
        phase = skipped_S[asset] % window
        while begin < ends_S[asset]:
            stop = min(begin + window - phase, ends_S[asset])
            total, weight, count = 0.0, 0.0, 0
            for n in range(begin, stop):
                known = not np.isnan(x_N[n])
                total = total * decay + (x_N[n] if known else 0.0)
                weight = weight * decay + known
                count += known
                place = phase + n - begin + 1
                if count + suffix_count_W[place] >= least:
                    older = powers_W[place]
                    out_N[n] = (total + older * suffix_W[place]) / (weight + older * suffix_weight_W[place])
                else:
                    out_N[n] = np.nan
            total, weight, count = 0.0, 0.0, 0
            for n in range(stop - 1, begin - 1, -1):  # as seen from the end of the block
                known = not np.isnan(x_N[n])
                power = powers_W[window - 1 - (phase + n - begin)]
                total += power * x_N[n] if known else 0.0
                weight += power * known
                count += known
                place = phase + n - begin
                suffix_W[place], suffix_weight_W[place], suffix_count_W[place] = total, weight, count
            begin, phase = stop, 0


@compiled
def z_scores(x_N, ends_S, skipped_S, window, least, out_N):
    """(x - mean) / standard deviation of the last `window` observations, this one included; 0 where they do not vary."""
    suffix_W, suffix_square_W, suffix_count_W = np.zeros(window + 1), np.zeros(window + 1), np.zeros(window + 1)
    total_W, square_W, count_W = np.empty(window), np.empty(window), np.empty(window)
    begin = 0
    for asset in range(len(ends_S)):
        suffix_W[:], suffix_square_W[:], suffix_count_W[:] = 0.0, 0.0, 0.0
        phase = skipped_S[asset] % window
        while begin < ends_S[asset]:
            stop = min(begin + window - phase, ends_S[asset])
            total, square, count = 0.0, 0.0, 0.0
            for k in range(stop - begin):
                x = x_N[begin + k]
                known = not np.isnan(x)
                total += x if known else 0.0
                square += x * x if known else 0.0
                count += 1.0 if known else 0.0
                total_W[k], square_W[k], count_W[k] = total, square, count
            for k in range(stop - begin):  # no value waits for the one before: several at a time
                x, place = x_N[begin + k], phase + k + 1
                seen = count_W[k] + suffix_count_W[place]
                level = (total_W[k] + suffix_W[place]) / seen
                power = square_W[k] + suffix_square_W[place]
                variance = (power - seen * level * level) / (seen - 1.0)
                z = (x - level) / np.sqrt(variance) if variance > 1e-10 * power / seen else 0.0 * x
                out_N[begin + k] = z if seen >= least else np.nan
            total, square, count = 0.0, 0.0, 0.0
            for n in range(stop - 1, begin - 1, -1):
                x, place = x_N[n], phase + n - begin
                known = not np.isnan(x)
                total += x if known else 0.0
                square += x * x if known else 0.0
                count += 1.0 if known else 0.0
                suffix_W[place], suffix_square_W[place], suffix_count_W[place] = total, square, count
            begin, phase = stop, 0


@compiled
def covariances(x_N, y_N, ends_S, skipped_S, window, least, variance_x_N, variance_y_N, covariance_N):
    """Second moments about the mean of the last `window` observations at which both are known (divided by their number)."""
    suffix_W5, suffix_count_W = np.zeros((window + 1, 5)), np.zeros(window + 1, np.int64)
    begin = 0
    for asset in range(len(ends_S)):
        suffix_W5[:], suffix_count_W[:] = 0.0, 0
        phase = skipped_S[asset] % window
        while begin < ends_S[asset]:
            stop = min(begin + window - phase, ends_S[asset])
            sx, sy, sxx, syy, sxy, count = 0.0, 0.0, 0.0, 0.0, 0.0, 0
            for n in range(begin, stop):
                known = not (np.isnan(x_N[n]) or np.isnan(y_N[n]))
                x, y = (x_N[n], y_N[n]) if known else (0.0, 0.0)
                sx, sy, sxx, syy, sxy = sx + x, sy + y, sxx + x * x, syy + y * y, sxy + x * y
                count += known
                place = phase + n - begin + 1
                seen = count + suffix_count_W[place]
                if seen >= least:
                    mean_x, mean_y = (sx + suffix_W5[place, 0]) / seen, (sy + suffix_W5[place, 1]) / seen
                    variance_x_N[n] = (sxx + suffix_W5[place, 2]) / seen - mean_x * mean_x
                    variance_y_N[n] = (syy + suffix_W5[place, 3]) / seen - mean_y * mean_y
                    covariance_N[n] = (sxy + suffix_W5[place, 4]) / seen - mean_x * mean_y
                else:
                    variance_x_N[n], variance_y_N[n], covariance_N[n] = np.nan, np.nan, np.nan
            sx, sy, sxx, syy, sxy, count = 0.0, 0.0, 0.0, 0.0, 0.0, 0
            for n in range(stop - 1, begin - 1, -1):
                known = not (np.isnan(x_N[n]) or np.isnan(y_N[n]))
                x, y = (x_N[n], y_N[n]) if known else (0.0, 0.0)
                sx, sy, sxx, syy, sxy = sx + x, sy + y, sxx + x * x, syy + y * y, sxy + x * y
                count += known
                place = phase + n - begin
                suffix_W5[place, 0], suffix_W5[place, 1], suffix_W5[place, 2] = sx, sy, sxx
                suffix_W5[place, 3], suffix_W5[place, 4], suffix_count_W[place] = syy, sxy, count
            begin, phase = stop, 0


@compiled
def highest(x_N, ends_S, skipped_S, window, out_N):
    """Maximum of the last `window` observations; NaN where all are missing."""
    suffix_W = np.full(window + 1, -np.inf)
    begin = 0
    for asset in range(len(ends_S)):
        suffix_W[:] = -np.inf
        phase = skipped_S[asset] % window
        while begin < ends_S[asset]:
            stop = min(begin + window - phase, ends_S[asset])
            top = -np.inf
            for n in range(begin, stop):
                top = x_N[n] if x_N[n] > top else top
                before = suffix_W[phase + n - begin + 1]
                found = top if top > before else before
                out_N[n] = found if found > -np.inf else np.nan
            top = -np.inf
            for n in range(stop - 1, begin - 1, -1):
                top = x_N[n] if x_N[n] > top else top
                suffix_W[phase + n - begin] = top
            begin, phase = stop, 0


@compiled
def median(x_N, ends_S, window, least, out_N):
    """Median of the last `window` observations; NaN where fewer than `least` are known.

    The known ones of the window are kept in order. A selection has no rounding, so that nothing needs an anchor.
    """
    sorted_W = np.empty(window + 1)
    begin = 0
    for end in ends_S:
        count = 0
        for n in range(begin, end):
            new = x_N[n]
            gone = x_N[n - window] if n - begin >= window else np.nan
            come, left = not np.isnan(new), not np.isnan(gone)
            into, out_of = 0, 0
            for k in range(count):  # counting is quicker than halving: no branch to guess
                into += sorted_W[k] < new
                out_of += sorted_W[k] < gone
            if not left:
                out_of = count
            if come and into > out_of:  # what stands between the two moves by one place
                for k in range(out_of, into - 1):
                    sorted_W[k] = sorted_W[k + 1]
                sorted_W[into - 1] = new
            elif come:
                for k in range(out_of, into, -1):
                    sorted_W[k] = sorted_W[k - 1]
                sorted_W[into] = new
            elif left:
                for k in range(out_of, count - 1):
                    sorted_W[k] = sorted_W[k + 1]
            count += come - left
            if count >= least:
                half = count // 2
                out_N[n] = sorted_W[half] if count % 2 else 0.5 * (sorted_W[half - 1] + sorted_W[half])
            else:
                out_N[n] = np.nan
        begin = end


@compiled
def store(x_N, clip, column, out_NF):
    """Column of a float32 table: x within +-clip, 0 where unknown."""
    for n in range(len(x_N)):
        x = x_N[n]
        out_NF[n, column] = 0.0 if np.isnan(x) else min(max(x, -clip), clip)


@compiled
def add_rows(values_KN, session_N, since, sums_DK):
    """Add each observation to the sums of its session, from the session `since` on."""
    for n in range(len(session_N)):
        if session_N[n] >= since:
            for k in range(len(values_KN)):
                sums_DK[session_N[n], k] += values_KN[k, n]


@compiled
def scatter(values_N, wanted_N, rows_N, file_R):
    """The wanted ones of some values (or rows of values) to their rows of a file."""
    for n in range(len(rows_N)):
        if wanted_N[n]:
            file_R[rows_N[n]] = values_N[n]


@compiled
def mark(asset_X, day_X, session_of_day, shift_A, from_A, last_A, marks_R):
    """Mark the rows of (asset, day) pairs whose session is computed. Days count from the first of the calendar."""
    for x in range(len(asset_X)):
        asset, session = asset_X[x], session_of_day[day_X[x]]
        if from_A[asset] <= session <= last_A[asset]:
            marks_R[shift_A[asset] + session] = True


@compiled
def gather(alive, shift_A, first_A, last_A, begin, eligible_R, liquidity_R, eligible_CA, liquidity_CA):
    """What is stored of some assets, asset after asset, as sessions from `begin` on, session after session."""
    for place in range(len(alive)):
        asset = alive[place]
        for c in range(max(first_A[asset] - begin, 0), min(last_A[asset] - begin + 1, len(eligible_CA))):
            row = shift_A[asset] + begin + c
            eligible_CA[c, place], liquidity_CA[c, place] = eligible_R[row], liquidity_R[row]


@compiled
def put_back(alive, shift_A, begin, eligible_CA, rank_CA, rank_R):
    """The ranks of eligible assets, session after session, to their rows."""
    for place in range(len(alive)):
        for c in range(len(eligible_CA)):
            if eligible_CA[c, place]:
                rank_R[shift_A[alive[place]] + begin + c] = rank_CA[c, place]
