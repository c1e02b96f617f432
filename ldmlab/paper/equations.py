"""The paper's numbered equations, 1 to 25, and the function that computes each.

The function cites its equation as `[LDM v2, Eq. 16]`, so a text search for the number finds it too. Equations that are
definitions, or that no code evaluates, have a reason instead. Notation as in the paper's App. B: alpha_t^2 + sigma_t^2
= 1, SNR(t) = alpha_t^2 / sigma_t^2; alpha_t^2 is `alpha_bar` in the code. The mathematics is missing in the plain text
of the paper; what is stated here is checked against the code by tests/paper/test_equations.py.
"""

import pkgutil
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Equation:
    """One numbered equation: what it states, and the dotted name of the function that computes it, or why none does."""

    number: int
    states: str
    function: str | None = None
    reason: str = ""

    def load(self) -> Any:
        """The function, property or class named by `function`; ValueError for an equation without code."""
        if self.function is None:
            raise ValueError(f"Eq. {self.number} has no code: {self.reason}")
        return pkgutil.resolve_name(self.function)


_D = "ldmlab.diffusion"
_TRANSFORMER = f"{_D}.conditioning.transformer.TokenTransformer"

EQUATIONS: dict[int, Equation] = {equation.number: equation for equation in (
    Equation(1, "L_DM = E_{x, eps, t} || eps - eps_theta(x_t, t) ||^2", f"{_D}.training.denoising_error"),
    Equation(2, "L_LDM = E_{E(x), eps, t} || eps - eps_theta(z_t, t) ||^2", f"{_D}.training.diffusion_loss"),
    Equation(3, "L_LDM = E_{E(x), y, eps, t} || eps - eps_theta(z_t, t, tau_theta(y)) ||^2",
             f"{_D}.training.DiffusionModule.eps_loss"),
    Equation(4, "q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)", f"{_D}.schedules.Schedule.q_sample"),
    Equation(5, "q(x_t | x_s) = N(alpha_{t|s} x_s, sigma_{t|s}^2 I) for s < t",
             reason="definition of the forward process: training draws x_t from x_0 by (4), never step by step"),
    Equation(6, "alpha_{t|s} = alpha_t / alpha_s", f"{_D}.schedules.Schedule.from_beta"),
    Equation(7, "sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2", f"{_D}.samplers.ddim_sigma"),
    Equation(8, "p(x_0) = int p(x_T) prod_t p(x_{t-1} | x_t)",
             reason="definition of the generative model: the integral is not evaluated, samplers draw from it"),
    Equation(9, "-log p(x_0) <= KL(q(x_T | x_0) || p(x_T)) + sum_t E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))",
             f"{_D}.likelihood.variational_bound"),
    Equation(10, "p(x_{t-1} | x_t) = q(x_{t-1} | x_t, x_theta(x_t, t))", f"{_D}.samplers.ddpm"),
    Equation(11, "that is N(mu_theta(x_t, t), sigma_{t|t-1}^2 sigma_{t-1}^2 / sigma_t^2 I)",
             f"{_D}.schedules.Schedule.posterior_variance"),
    Equation(12, "mu_theta = alpha_{t|t-1} sigma_{t-1}^2 / sigma_t^2 x_t + alpha_{t-1} sigma_{t|t-1}^2 / sigma_t^2 "
             "x_theta", f"{_D}.schedules.Schedule.posterior_mean"),
    Equation(13, "KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) = (SNR(t-1) - SNR(t)) / 2 || x_0 - x_theta ||^2",
             f"{_D}.likelihood.step_kl"),
    Equation(14, "eps_theta(x_t, t) = (x_t - alpha_t x_theta(x_t, t)) / sigma_t", f"{_D}.prediction.eps_from_z0"),
    Equation(15, "|| x_0 - x_theta ||^2 = sigma_t^2 / alpha_t^2 || eps - eps_theta ||^2",
             f"{_D}.schedules.Schedule.vlb_weights"),
    Equation(16, "eps_hat = eps_theta(z_t, t) + sqrt(1 - alpha_t^2) grad log p_phi(y | z_t); the code has the sign of "
             "[ADM, Alg. 2], minus, by which p_phi grows", f"{_D}.guidance.classifier_guided"),
    Equation(17, "log p_phi(y | z_t) = -1/2 || y - T(D(z_0(z_t))) ||^2", f"{_D}.guiders.gaussian_guider"),
    Equation(18, "zeta = TokEmb(y) + PosEmb(y)", _TRANSFORMER),
    Equation(19, "zeta_1 = LayerNorm(zeta), in each of N layers", _TRANSFORMER),
    Equation(20, "zeta_2 = MultiHeadSelfAttention(zeta_1) + zeta", _TRANSFORMER),
    Equation(21, "zeta_3 = LayerNorm(zeta_2)", _TRANSFORMER),
    Equation(22, "zeta = MLP(zeta_3) + zeta_2", _TRANSFORMER),
    Equation(23, "tau_theta(y) = LayerNorm(zeta), after the last layer", _TRANSFORMER),
    Equation(24, "nothing", reason="the number stands at no equation in the paper's text: (23) is followed by (25)"),
    Equation(25, "min_{E, D} max_psi (L_rec - L_adv + log D_psi + L_reg)",
             "ldmlab.first_stage.losses.FirstStageLoss.generator_terms"),
)}
