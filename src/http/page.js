// The token is in the fragment, which browsers never send to a server. It is used only on submit.
// The unsubscribe token is a query parameter instead, because mail clients post to the same URL.
const at = (id) => document.getElementById(id);
const pages = {
  "/auth/verify-email": {
    title: "Verify your e-mail address",
    submit: "Verify",
    done: "Done. Your address is verified.",
    request: (token) => ["/auth/verify-email", { token }],
  },
  "/auth/password-reset": {
    title: "Set a new password",
    submit: "Set password",
    done: "Done. Log in with the new password.",
    request: (token) => ["/auth/password-reset/confirm", { token, new_password: at("password").value }],
  },
  "/auth/email-change/cancel": {
    title: "Keep your old e-mail address",
    submit: "It was not me: cancel the change",
    done: "Done. All sessions have ended. We have sent you a link to set a new password.",
    request: (token) => ["/auth/email-change/cancel", { token }],
  },
  "/auth/unsubscribe": {
    title: "E-mails about assignments",
    submit: "Unsubscribe",
    done: "Done. You will receive no more e-mails about assignments.",
    request: () => [`/auth/unsubscribe${location.search}`, {}],
  },
};
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
const path = Object.keys(pages).find((path) => location.pathname.endsWith(path));
const page = pages[path];
at("title").textContent = page.title;
at("submit").textContent = page.submit;
at("password").required = path === "/auth/password-reset";
at("password").hidden = at("password-label").hidden = !at("password").required;
at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [url, body] = page.request(token);
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  if (response.ok) {
    at("form").hidden = true;
    at("answer").textContent = page.done;
  } else {
    at("answer").textContent = (await response.json()).detail;
  }
});
