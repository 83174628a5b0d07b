// The error of a backend, with a sentence for people.
export class BackendError extends Error {
  // status: as in HTTP, 0 where nothing answered; retryAfter: seconds until another try makes sense, or null
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.name = "BackendError";
    this.status = status;
    this.retryAfter = retryAfter;
  }
}
