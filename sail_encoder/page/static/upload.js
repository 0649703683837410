// A file goes to the server as it is, and its token to the page; what cannot be used is said there.
const input = element.querySelector("input");
const limit = Number(input.dataset.limit);
const send = async (file) => {
  if (file.size > limit) return { error: file.name + ": " + input.dataset.refusal };
  try {
    const path = input.dataset.path + "?name=" + encodeURIComponent(file.name);
    return await (await fetch(path, { method: "POST", body: file })).json();
  } catch (error) {
    return { error: file.name + ": the server does not answer; is it still running?" };
  }
};
input.addEventListener("change", async () => {
  if (!input.files.length) return;
  const answer = await send(input.files[0]);
  input.value = "";
  trigger("upload", answer);
});
