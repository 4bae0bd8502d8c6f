// A certified OpenID Connect provider whose people are those of the file OP_PEOPLE, read each time.
import { readFileSync } from 'node:fs';
import { Provider } from 'oidc-provider';

const port = Number(process.env.OP_PORT);
const person = (id) => JSON.parse(readFileSync(process.env.OP_PEOPLE, 'utf8'))[id];
const client = (id) => ({
  client_id: id,
  client_secret: `secret-of-${id}-secret-of-${id}`,
  redirect_uris: process.env.OP_REDIRECTS.split(','),
  grant_types: ['authorization_code', 'refresh_token'],
  response_types: ['code'],
});
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [client('one'), client('two')],
  pkce: { required: () => true, methods: ['S256'] },
  conformIdTokenClaims: false,
  claims: {
    openid: ['sub'],
    email: ['email', 'email_verified'],
    profile: ['name', 'given_name', 'family_name', 'preferred_username'],
    groups: ['groups'],
  },
  features: { devInteractions: { enabled: true }, revocation: { enabled: true } },
  cookies: { keys: ['only-for-tests'] },
  ttl: { Interaction: 600, Session: 600, Grant: 600, IdToken: 600, AccessToken: 600, RefreshToken: 600 },
  async findAccount(context, id) {
    const known = person(id);
    return known && { accountId: id, claims: async () => ({ sub: id, ...known }) };
  },
});
provider.listen(port, '127.0.0.1');
