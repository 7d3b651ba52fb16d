// The token stands behind `#`, which browsers send to no server; it is used only when the person asks for it.
const at = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
const resets = location.pathname.endsWith("/password-reset");
at("title").textContent = resets ? "Set a new password" : "Verify your e-mail address";
at("submit").textContent = resets ? "Set password" : "Verify";
at("password").hidden = at("password-label").hidden = !resets;
at("password").required = resets;
at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const path = resets ? "/auth/password-reset/confirm" : "/auth/verify-email";
  const body = resets ? { token, new_password: at("password").value } : { token };
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  if (response.ok) {
    at("form").hidden = true;
    at("answer").textContent = resets ? "Done. Log in with the new password." : "Done. Your address is verified.";
  } else {
    at("answer").textContent = (await response.json()).detail;
  }
});
