"""How far two numbers of a test may lie apart, by the type in which they were computed and by what lies between them.

Relative (`rtol`, `rel`) and absolute (`atol`, `abs`) alike. What depends on chance has no place here: a bound on a share of n draws is
derived where it stands.
"""

from __future__ import annotations

# float64

#: One rounding: the same product written in two ways.
ROUNDING_64 = 1e-14
#: A closed formula of a few operations.
FORMULA_64 = 1e-12
#: The same values in another order, or as scipy computes it.
REORDERED_64 = 1e-9
#: The same through a division by a small difference.
QUOTIENT_64 = 1e-7
#: A logarithm of p of values that were scaled, mirrored or shifted: what they lost to rounding counts in the tail.
TAIL_64 = 1e-6
#: An approximation beside the iteration that it stands for.
FITTED_64 = 1e-5
#: A number that a test states with six digits behind the point.
SIX_DIGITS = 1e-6
#: What a solver of convex problems returns, which stops short of the optimum.
SOLVED_64 = 1e-4
SOLVED_COARSELY_64 = 1e-3
#: The same optimum by two ways in closed form.
SOLVED_TWICE_64 = 1e-6

# float32

#: A value of order 1 beside the same without its rounding: one operation, or less.
ROUNDING_32 = 1e-7
#: A few operations on a value: stamping, encoding, a mean of few.
OPERATION_32 = 1e-6
#: A sum over an image or a layer, in another order or another runtime.
SUM_32 = 1e-5
#: A network of several layers, in another runtime, batch size or memory layout.
NETWORK_32 = 1e-4
#: The same where the network amplifies: logits of order 100 and more, or scores taken behind a threshold.
AMPLIFIED_32 = 1e-3
#: The same for files that hold, or pass through, weights or pixels of lower precision.
LOW_PRECISION_32 = 1e-2

# Iterations in float32, in another batch: small differences grow from step to step.

#: The cost at which a search ended.
SEARCHED_COST = 1e-3
#: A pixel of the trigger that it found, in [0, 1].
SEARCHED_PIXEL = 5e-3
#: Answers of small networks after a training in another batch.
TRAINED = 0.05
